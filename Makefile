# What a person or a machine does with a checkout. Needs Python 3.11 or later with its venv module, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests of one file stay together: they share services that are dear to start.
PYTEST := $(BIN)/python -m pytest

# Everything a target here writes stays in the checkout.
export PIP_CACHE_DIR ?= $(CURDIR)/.cache/pip
DEMO := env -u LAUNCH_BROKER_URL LAUNCH_HOME=$(CURDIR)/.demo $(BIN)/launch

.DEFAULT_GOAL := help
.PHONY: help venv dev unit test chaos check demo clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# --- the virtual environment: made anew only when what it is made from changes ---------------------------------------

$(VENV)/pip.stamp: constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "openlaunch needs Python 3.11 or later"'
	$(PYTHON) -m venv $(VENV)
	@# Dependency groups need a newer pip than some Pythons bring.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	@touch $@

$(VENV)/run.stamp: $(VENV)/pip.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

venv: $(VENV)/run.stamp ## make the virtual environment in .venv, with openlaunch in it

dev: $(VENV)/dev.stamp ## the same with what tests and checks need

# --- tests -----------------------------------------------------------------------------------------------------------

unit: dev ## run the tests that need nothing and take seconds
	$(PYTEST) -q tests/unit

test: dev ## run all tests; what is skipped says why
	$(PYTEST) -n 2 --dist loadfile -ra

SEED ?= 1
chaos: venv ## kill everything again and again under real runs (some 20 minutes), and print what came of it
	$(BIN)/launch chaos --seed $(SEED)

check: dev ## lint, format, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# --- the rest --------------------------------------------------------------------------------------------------------

demo: venv ## train a model on this machine: broker, server and agent started, a job launched and followed, all ended
	@$(DEMO) run tests/jobs/digits --entrypoint "python train.py" -c epochs=5; \
	status=$$?; $(DEMO) down --stop; exit $$status

clean: ## delete the virtual environment and everything that tools made
	rm -rf $(VENV) build dist .cache .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
