# `make demo` and `make test` do all the set-up on a fresh machine; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# The environment is set up again when what it is made from changes. torch goes first: where pip is pointed at a CPU
# build that one is kept, and where the pinned version does not exist for the platform pip chooses.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
# Two workers of one thread each: the tests are many small models, which threads do not speed up.
WORKERS ?= 2
# Of the benchmarks; what has a file in figures/data/benchmarks is kept, so delete it to measure again.
ROUNDS ?= 3
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# No test asks the Hub for anything.
PYTEST := $(THREADS) HF_HUB_OFFLINE=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile
# Without network the tests that need the model skip with the reason; under CI that is a failure.
FETCH := $(VENV)/bin/interp models fetch smollm2 || [ -z "$${CI:-}" ]

.PHONY: help venv browser model demo lint test test-fast test-full bench bench-startup

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: $(STAMP) ## Create .venv and install the package with its tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "interp needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0 || $(PY) -m pip install -q torch
	$(PY) -m pip install -q -c constraints.txt -e '.[dev,figures,diffusion,notebook,ray,slurm]'
	rm -f $(VENV)/.installed-*
	touch $@

browser:
	@./.ci/browser

model: venv
	@$(VENV)/bin/interp models fetch smollm2

demo: venv model ## Run the main job on the default model and say where its page is
	$(VENV)/bin/interp atlas smollm2 --quick --out runs/demo
	@echo "The page: file://$(CURDIR)/runs/demo/report.html"

lint: venv ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: venv browser lint ## All tests but the slow ones (what CI runs)
	@$(FETCH)
	$(PYTEST) -m "not slow"

test-fast: venv ## Only what needs no trained model and no browser
	$(PYTEST) -m "not slow and not model and not browser"

test-full: venv browser lint ## All tests, without a limit of time
	@$(FETCH)
	$(PYTEST)

bench: venv model ## Measure speed and memory against other tools: one table, a figure and the README's block
	$(PY) -m tests.benchmarks --rounds $(ROUNDS) --threads 1 --workers $(WORKERS)
	$(PY) figures/benchmarks.py --readme
	$(PY) figures/benchmarks.py

bench-startup: venv model ## Measure what starting takes
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(THREADS) $(PY) "$$script"; done
