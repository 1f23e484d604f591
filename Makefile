# SPDX-License-Identifier: GPL-2.0-or-later
# Everything a fresh Debian 12 machine with git, make and Python >= 3.11 needs: make run, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# How many random mutations `make mutants` makes, which ones, and how many at a time.
N ?= 100
SEED ?= 1
JOBS ?= $(shell nproc)

# How many tests run at a time: one more than there are cores, for tests wait, too.
WORKERS ?= $(shell expr $$(nproc) + 1)

.PHONY: venv run test mutants lab slow lint types check docs bench man picture wheel clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mthp needs Python 3.11 or newer; $(PYTHON) is older (try make PYTHON=python3.11)" >&2; exit 5; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 5; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

run: venv
	$(BIN)/python -m mthp.demo

test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lab: venv
	$(BIN)/python -m pytest -m lab -rs tests

mutants: venv
	$(BIN)/python -m tests.mutation --n $(N) --seed $(SEED) --jobs $(JOBS)

slow: venv
	$(BIN)/python -m pytest -m slow -rs tests

lint: venv
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs

types: venv
	$(BIN)/mypy

check: lint types test

docs: venv
	$(BIN)/python docs/generate.py

# The pictures in README.md and docs/life.md; the tests hold the files against what this writes.
picture: venv
	$(BIN)/python -m mthp plan src/mthp/data/redis.npz --profile 7.3 --enabled all=always,always \
	  --max-ptes-none 0 --quiet --svg docs/drawings/redis.svg
	$(BIN)/python -m mthp life docs/examples/life/tree.npz --enabled 64kB=always --profile 7.3 \
	  --scan-sleep-millisecs 100 --svg docs/drawings/life-tree.svg >/dev/null

bench: venv
	$(BIN)/python benchmarks/run.py

man: venv
	$(BIN)/python docs/man.py build/man

wheel: venv
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
