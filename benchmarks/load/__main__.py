"""`python -m benchmarks.load`."""

from benchmarks.load.main import main

main()
