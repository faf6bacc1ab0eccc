"""`python -m benchmarks.training`."""

from benchmarks.training.main import main

main()
