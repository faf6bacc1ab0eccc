# Two commands do everything: `make demo` runs the main job on real text, `make test` the tests.
# Both create .venv and install the exact versions of constraints.txt first.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: demo test slow soak search check lint clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    a coordinator and three workers turn real text into an ensemble (4 to 7 minutes)"
	@echo "make test    all tests (about 35 minutes on two cores)"
	@echo "make slow    the tests that take minutes each"
	@echo "make soak    what is too long for every change: a real pretrained model (93 MB are fetched), a storm of ten minutes"
	@echo "make search  properties with other examples each time, and a thousand of each"
	@echo "make check   what CI runs: linters, types, import contracts, demo, tests"
	@echo "make lint    linters, types and import contracts alone"
	@echo "make clean   removes .venv, caches and the demo's folder"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "make: Python 3.11 is needed (hivemind 1.1.12 and the locked torch are tested with it alone)."; \
	  echo "make: '$(PYTHON)' is: $$($(PYTHON) --version 2>&1). Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; \
	  exit 1; }
	@echo "== creating $(VENV) and installing the versions of constraints.txt (about 1.6 GB on disk, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@echo "== demo: a coordinator and three unlike workers on this machine, real text, 4 to 7 minutes"
	@$(BIN)/python scripts/demo.py

test: $(STAMP)
	@echo "== tests: unit, integration with real peers, and a swarm of real processes, $(JOBS) files at a time"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	@echo "== slow tests: the api killed twenty times in the middle of a thousand requests each"
	@$(BIN)/python -m pytest -m slow

soak: $(STAMP)
	@echo "== soak tests: a real pretrained model from its package (93 MB), a storm of ten minutes over three workers"
	@$(BIN)/python -m pytest -m soak

search: $(STAMP)
	@echo "== search: new examples, and more of them, for every property"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --hypothesis-profile=search tests/unit tests/state

lint: $(STAMP)
	@echo "== formatting, lint, types, import contracts"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

check:
	@bash .ci/run

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
