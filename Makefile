# make demo    install lowbit into .venv and run the main job on the bundled model
# make test    install the development tools and run everything that CI runs
# make check   style, types, imports, house rules, stale pages: under a minute
# make fix     what a machine can mend
# make bench   this machine's benchmarks in MINUTES, rows into bench/results, and which bars hold (bench/all.py)
# make gpu     the tests that need an NVIDIA GPU
# make docs    the pages, into docs/_build
# make lock    pin the newest versions that work together (requirements-ci.txt)
# make clean   remove all that was made

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint requirements-ci.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench gpu docs lock clean

help:
	@grep '^# make' Makefile | cut -c 3-

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lowbit needs Python 3.11 or newer. Say which: make PYTHON=python3.11 demo")'
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.lowbit: $(VENV)/.torch pyproject.toml requirements-ci.txt
	@echo "Installing lowbit ..."
	@$(PIP) --editable .
	@$(BIN)/python -c 'from lowbit.kernels.cpu import _build; print(_build.missing() or "C++ kernels are built.")'
	@touch $@

$(VENV)/.dev: $(VENV)/.lowbit
	@echo "Installing the development tools ..."
	@$(PIP) --editable ".[dev,docs]"
	@touch $@

demo: $(VENV)/.lowbit
	@$(BIN)/python examples/demo.py

check: $(VENV)/.dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo > $(VENV)/imports.txt || (cat $(VENV)/imports.txt; false)
	$(BIN)/python tools/house.py
	$(BIN)/python docs/generate.py --check

test: check docs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev
	@$(BIN)/python bench/all.py --minutes $(MINUTES)

gpu: $(VENV)/.dev
	@$(BIN)/python -m pytest -m gpu

docs: $(VENV)/.dev
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lock: $(VENV)/.dev
	@$(BIN)/python tools/lock.py

clean:
	rm -rf $(VENV) build dist docs/_build demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
