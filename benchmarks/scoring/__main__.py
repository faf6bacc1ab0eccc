"""`python -m benchmarks.scoring`."""

from benchmarks.scoring.main import main

main()
