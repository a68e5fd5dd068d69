# `make demo` and `make test` set up everything that they need. PYTHON: any Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint types imports bench tutorials clean

setup: .venv/ready

# torch first and pinned by the constraints, so that no dependency pulls another build of it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

demo: setup
	$(BIN)/python -m demo

test: lint types imports
	$(BIN)/python -m pytest -n 2 -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

imports: setup
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks

# Executes every tutorial and writes its notebook. `make tutorials ONLY=05` for some.
tutorials: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tutorials]'
	$(BIN)/python -m tutorials $(ONLY)

clean:
	rm -rf .venv outputs
