"""`python -m benchmarks.mixing`."""

from benchmarks.mixing.main import main

main()
