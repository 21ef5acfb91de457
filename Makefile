# Everything here works on a fresh clone: each target installs what it needs into .venv first, once.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
export TURNOUT_VENV := $(VENV)
# Without byte code every process compiles torch and vLLM from source: half a minute each.
unexport PYTHONDONTWRITEBYTECODE

UNIT := tests/unit tests/deploy/test_words.py tests/services/learner/objectives tests/services/verifier/test_rewards.py \
  tests/client/test_report.py tests/client/test_run_files.py tests/client/test_watch.py \
  tests/services/learner/test_checkpoint.py tests/services/learner/test_questions.py tests/services/learner/test_teacher_prompt.py \
  tests/services/rollout/test_adapter.py tests/services/rollout/test_ended_engine.py tests/services/rollout/test_fit.py \
  tests/services/rollout/test_last_words.py tests/services/rollout/test_packing.py tests/services/rollout/test_transfer.py \
  tests/services/runtime/test_logs.py tests/services/runtime/test_model_folder.py tests/services/runtime/test_side_streams.py

.PHONY: help install install-gpu install-dev demo up down doctor gpu-proof test test-deploy test-hosts unit coverage experiment smollm2 smollm2-strict
.PHONY: chaos bench docs locks clean
.PHONY: check check-python check-types check-borders check-page check-prose check-docs check-generated check-deploy check-kubernetes

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

install:  ## Install for a machine without a GPU
	@deploy/install.sh cpu

install-gpu:  ## Install for a machine with NVIDIA GPUs
	@deploy/install.sh gpu

install-dev:  ## Install what tests and checks need, too
	@deploy/install.sh dev

demo: install  ## Train a small model with SRPO through all services, with a report at the end
	@$(BIN)/turnout demo

up: install  ## Start all services on this machine
	@$(BIN)/turnout up

down:  ## Stop what `make up` started
	@$(BIN)/turnout down

doctor: install  ## Say what this machine lacks
	@$(BIN)/turnout doctor

gpu-proof:  ## Check this machine's GPU with a model of random weights; prints a report
	@[ -x $(BIN)/python ] || { echo "gpu-proof needs an installation. Run make install-gpu first." >&2; exit 1; }
	@$(BIN)/turnout doctor --gpu

check: check-python check-types check-borders check-page check-prose check-docs check-generated check-deploy check-kubernetes  ## All checks below

check-python: install-dev  ## Format and lint of Python
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-types: install-dev  ## Types
	$(BIN)/mypy

check-borders: install-dev  ## Which package may import which
	$(BIN)/lint-imports

check-page: install-dev  ## Types, format and lint of the page's scripts
	@[ -x node_modules/.bin/tsc ] || { echo "check-page needs Node.js and npm (Debian: nodejs npm). Install them and run make check-page again." >&2; exit 1; }
	node_modules/.bin/tsc
	node_modules/.bin/biome check --error-on-warnings

check-prose: install-dev  ## Misspellings; phrases that docs/style.md replaces, in new text
	$(BIN)/codespell
	$(BIN)/python docs/check_words.py

check-docs: install-dev  ## The documentation site builds, without dead links
	$(BIN)/python docs/make_site.py

check-generated: install-dev  ## Generated pages, dashboards and the blocking client are up to date
	$(BIN)/python docs/make_configuration.py --check
	$(BIN)/python docs/make_metrics.py --check
	$(BIN)/python docs/make_decisions.py --check
	$(BIN)/python docs/make_client.py --check
	$(BIN)/python deploy/grafana/make_dashboards.py --check

check-deploy: install-dev  ## The Dockerfile; the Compose files, where Docker Compose is installed
	$(BIN)/hadolint deploy/docker/Dockerfile
	@if docker compose version >/dev/null 2>&1; then deploy/check_compose.sh; else echo "Docker Compose is not installed, so its files are read by tests/deploy alone."; fi

check-kubernetes: install-dev  ## The Kubernetes manifests render and fit Kubernetes' schemas
	@set -o pipefail; for folder in overlays/cpu overlays/gpu overlays/machines example; do \
	  $(BIN)/kubectl kustomize deploy/kubernetes/$$folder | $(BIN)/kubernetes-validate --strict --quiet --no-warn - || exit 1; \
	done
	@$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/inputs.yaml

test: install-dev  ## All tests, on real parts, and all checks alongside
	@mkdir -p build; make --no-print-directory check >build/check.log 2>&1 & checks=$$!; \
	  $(BIN)/python -m pytest; tests=$$?; \
	  wait $$checks; checks=$$?; cat build/check.log; exit $$((tests || checks))

unit: install-dev  ## Tests that start no server, in under a minute
	$(BIN)/python -m pytest $(UNIT)

test-deploy: install-dev  ## The Compose deployment on a real Docker engine, which is fetched where there is none
	PYTHON=$(abspath $(BIN))/python tests/deploy/trial/run.sh

test-hosts: install-dev  ## A run on three hosts that share nothing (network namespaces: Linux, root), with cables cut: a report
	$(BIN)/python -m tests.ring.hosts

coverage: install-dev  ## All tests again, measuring which lines they run; a report in build/coverage/html
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html

experiment: install  ## Compare the methods on the embedded benchmark, tuned, five seeds each: an hour and a half
	@$(BIN)/turnout up --detach --home .turnout/experiment --api-port 8411
	@status=0; $(BIN)/turnout experiment examples/experiments/embedded.yaml --api-url http://127.0.0.1:8411 \
	  --out .turnout/experiment/report || status=$$?; \
	  $(BIN)/turnout down --home .turnout/experiment; exit $$status

smollm2:  ## SRPO and GRPO on a pretrained model that learns to answer questions: an estimated two hours
smollm2-strict:  ## The same with a strict reward
smollm2: FILE := examples/smollm2/experiment.yaml
smollm2-strict: FILE := examples/smollm2/experiment-strict.yaml
smollm2 smollm2-strict: install-dev
	@$(BIN)/python examples/make_smollm2.py models/smollm2-135m
	@$(BIN)/turnout up --detach --home .turnout/$@ --api-port 8412
	@status=0; $(BIN)/turnout experiment $(FILE) --api-url http://127.0.0.1:8412 \
	  --out .turnout/$@/report || status=$$?; \
	  $(BIN)/turnout down --home .turnout/$@; exit $$status

chaos: install-dev  ## A run under 30 SIGKILLs, servers joining and leaving, beside an undisturbed one: a report
	$(BIN)/python -m tests.ring.chaos

bench: install-dev  ## Measure; rewrites the tables in docs/performance.md
	@$(BIN)/python examples/make_smollm2.py models/smollm2-135m
	$(BIN)/python -m benchmarks

docs: install-dev  ## Rewrite generated files; build the documentation site in build/site
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_metrics.py
	$(BIN)/python deploy/grafana/make_dashboards.py
	$(BIN)/python docs/make_decisions.py
	$(BIN)/python docs/make_client.py
	$(BIN)/python docs/make_site.py

locks: install-dev  ## Rewrite the lock files from pyproject.toml
	deploy/requirements/compile.sh

clean:  ## Remove the environment and caches; runs in .turnout stay
	rm -rf $(VENV) node_modules .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
