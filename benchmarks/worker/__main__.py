"""`python -m benchmarks.worker`."""

from benchmarks.worker.main import main

main()
