"""`python -m worker.trainer ASSIGNMENT.json`."""

import sys

from worker.trainer.main import main

sys.exit(main(sys.argv[1:]))
