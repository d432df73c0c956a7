# Each target installs what it needs and does nothing twice. A GPU user sets PIP_ARGS or installs torch into VENV first.
VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo test check docs bench clean

help:  ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"fsframework needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The stamps name what was installed; a change of the requirements installs again.
$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fsframework and its requirements into $(VENV) (a few minutes the first time) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing the development tools into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	@echo "Installing the documentation tools into $(VENV) ..."
	@$(PIP) -e '.[docs]'
	@touch $@

install: $(VENV)/.base  ## Create the virtual environment with everything `fsf` needs

demo: install  ## Full compute, static reuse and Foresight on the bundled model; writes runs/demo/report.html
	@$(BIN)/fsf demo

test: $(VENV)/.dev  ## Quick tests (under 5 minutes, WORKERS=2 processes); SLOW=1 runs the slow ones too
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(if $(SLOW),,-m "not slow") $(ARGS)

check: $(VENV)/.dev  ## Lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install  ## Our policies beside the bare model and the peers' caches; ARGS as of `fsf bench`
	@$(BIN)/fsf bench $(ARGS)

clean:  ## Remove build products; keeps the virtual environment and runs/
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
