# Each target sets up what it needs: .venv with the locked versions, made again only when the lock or pyproject.toml
# has changed. Nothing here needs an activated environment.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# One process more than there are cores, as some tests wait; one thread each, files kept together.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$cores -lt 8 ] && echo $$((cores + 1)) || echo 8)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup quickstart check quick test explore lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the locked versions and this package

$(READY): requirements.lock pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo "error: Python 3.11 to 3.13 is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -1);" \
	      "name another one, as in: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv .venv; }
	@echo "installing the locked versions into .venv; the first time this takes some minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: $(READY) ## Train, fine-tune and evaluate a small model on the embedded data (minutes on two CPU cores)
	$(BIN)/python train.py experiment=quickstart

check: $(READY) ## Check style and types, run the quick tests (some minutes)
	@$(MAKE) --no-print-directory -j2 lint quick

quick: $(READY) ## Run the quick tests only
	$(PYTEST) -m "not slow and not dist and not gpu and not network"

test: check ## The same, then the slow and the two-process tests
	$(PYTEST) -m "(slow or dist) and not gpu and not network"

explore: $(READY) ## The property tests on new random examples
	HYPOTHESIS_PROFILE=explore $(PYTEST) -m "not gpu and not network" $$(grep -rl "^from hypothesis import" tests --include='test_*.py')

lint: $(READY) ## Check style and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## Mend style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove caches and build leftovers; runs (outputs/, multirun/) and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
