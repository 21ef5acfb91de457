# Everything here works on a fresh clone: each target installs what it needs into .venv first, once.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
export TURNOUT_VENV := $(VENV)
# Without byte code every process compiles torch and vLLM from source: half a minute each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-gpu demo up down doctor check test chaos bench docs locks clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install:  ## Install for a machine without a GPU
	@deploy/install.sh cpu

install-gpu:  ## Install for a machine with NVIDIA GPUs
	@deploy/install.sh gpu

install-dev:
	@deploy/install.sh dev

demo: install  ## Train a small model with SRPO through all services, with a report at the end
	@$(BIN)/turnout demo

up: install  ## Start all services on this machine
	@$(BIN)/turnout up

down:  ## Stop what `make up` started
	@$(BIN)/turnout down

doctor: install  ## Say what this machine lacks
	@$(BIN)/turnout doctor

check: install-dev  ## Format, lint, types, import borders, generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make_configuration.py --check
	$(BIN)/python deploy/grafana/make_dashboards.py --check

test: check  ## All tests, on real parts
	$(BIN)/python -m pytest

chaos: install-dev  ## A run under 30 SIGKILLs, servers joining and leaving, beside an undisturbed one: a report
	$(BIN)/python -m tests.ring.chaos

bench: install-dev  ## Measure; rewrites the tables in docs/performance.md
	$(BIN)/python -m benchmarks

docs: install-dev  ## Rewrite generated pages
	$(BIN)/python docs/make_configuration.py

locks: install-dev  ## Rewrite the lock files from pyproject.toml
	deploy/requirements/compile.sh

clean:  ## Remove the environment and caches; runs in .turnout stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
