SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
JOBS ?= 2
TRIALS ?= 6

# Larger data sets, where they lie beside this folder. Without them the tests use the embedded samples.
ifeq ($(origin SEQATTN_DATA),undefined)
ifneq ($(wildcard ../shared/data/.),)
test: export SEQATTN_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: help demo test lint format types wheel clean

help: ## Say what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are renewed when what is to be installed has changed, and only then.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.plot $@

$(VENV)/.plot: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[plot]'
	@touch $@

demo: $(VENV)/.plot ## Tune SAHP and fit the classifier on embedded real data: figures and plots in runs/demo*
	$(BIN)/seqattn tune hawkes --trials $(TRIALS) --workers $(JOBS) --set epochs=12 --output runs/demo
	$(BIN)/seqattn fit classify --output runs/demo-classify
	$(BIN)/seqattn evaluate runs/demo-classify --output runs/demo-classify/test

lint: $(VENV)/.dev ## Check style, format and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

test: lint types ## Check everything: style, types, imports, tests
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal --quiet

format: $(VENV)/.dev ## Rewrite the code in the agreed format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev ## Build the wheel and the source archive into dist
	$(BIN)/python -m hatchling build --directory dist

clean: ## Remove the environment and everything that was built, tests' leftovers included
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
