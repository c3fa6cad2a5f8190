# jaxgen: everything a fresh machine needs. Each target makes .venv on first use.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Two processes, a test file in one of them; PYTEST_ARGS= runs all tests in one
PYTEST_ARGS ?= -n 2 --dist loadfile
# e.g. BENCH_ARGS="--only=tokens,block --repeats=3"; see python -m benchmarks --help
BENCH_ARGS ?= --output=runs/benchmarks.json
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow bench docs lint format clean

quickstart: $(VENV)/.run
	$(BIN)/python -m jaxgen.main --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# The reference of the Python interface, as HTML.
ROOMS := data tokenizers ops layers models heads checkpoints baselines train jobs
docs: $(VENV)/.docs
	$(BIN)/python -m pdoc --output-directory site jaxgen $(ROOMS:%=jaxgen.%) '!jaxgen.checkpoints.verify'

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis runs site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: jaxgen needs Python >= 3.11; run make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Installed again only when pyproject.toml changes.
$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	@touch $@

# An unpinned torch may bring several GB of CUDA libraries; the CPU comparison needs none of them.
$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[bench]"
	@touch $@
