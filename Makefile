# make demo: set up and run the main job with embedded defaults.   make test: set up, lint, type-check, test.
# make train-demo: set up and train the tiny policy, as trainers do.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
STAMP := $(VENV)/.installed
BASE_PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo train-demo test lint bench setup system-packages clean
.DEFAULT_GOAL := demo

demo: setup
	$(PYTHON) -m agentenv process configs/shell_tasks.yaml

train-demo: setup
	$(PYTHON) -m agentenv train-demo configs/train_demo.yaml

test: lint
	@./scripts/test-engine.sh start
	@BASE_PYTHON=$(BASE_PYTHON) ./scripts/atropos-venv.sh
	$(PYTHON) $(if $(PYTEST_ARGS),-m pytest,scripts/run_tests.py) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: setup
	$(PYTHON) -m tests.benchmarks

setup: system-packages $(STAMP)

system-packages:
	@./scripts/setup-system.sh

$(STAMP): pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv"; exit 1; }
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade "pip>=25.1"
	$(PYTHON) -m pip install --quiet torch==2.13.0 || $(PYTHON) -m pip install --quiet torch
	$(PYTHON) -m pip install --quiet --group dev -e '.[docker,math,mcp,modal,models,parquet,swe,torch,trl]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-atropos dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
