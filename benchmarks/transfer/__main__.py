"""`python -m benchmarks.transfer`."""

from benchmarks.transfer.main import main

main()
