# `make demo` and `make test` set up everything that they need. PYTHON: any Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint types imports peers bench tutorials clean

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

# What `make bench` compares with. The jax stack wants versions of its own, and is talked to through a subprocess.
peers: .venv/peers-ready

.venv/peers-ready: .venv/ready benchmarks/peers/jax_side/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	$(BIN)/python -m pip install --quiet --no-deps qpth==0.0.18
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install --quiet --requirement benchmarks/peers/jax_side/requirements.txt
	touch .venv/peers-ready

# Every suite against every peer, and benchmarks/RESULTS.md written anew. `declarative bench NAME` runs one, with the peers that are there.
bench: setup peers
	$(BIN)/python -m benchmarks --results

# Executes every tutorial and writes its notebook. `make tutorials ONLY=05` for some.
tutorials: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tutorials]'
	$(BIN)/python -m tutorials $(ONLY)

clean:
	rm -rf .venv .venv-jax outputs
