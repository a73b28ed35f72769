# Everything a contributor or a CI machine runs. Needs Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-long bootstrap bootstrap-short check format install schemas clean

install: $(STAMP)

# Torch goes first and alone: where a CPU build is on offer this picks it, and nothing after it
# asks for another one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "capfilt needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/capfilt demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not long and not gpu"

test-long: $(STAMP)
	$(BIN)/python -m pytest -q -m "not gpu"

# The proof that bootstrapping helps: two hours on two cores, or ten minutes for a nightly run.
bootstrap: $(STAMP)
	$(BIN)/python -m benchmarks.bootstrap --page docs/bootstrap.md

bootstrap-short: $(STAMP)
	$(BIN)/python -m benchmarks.bootstrap --short --minutes 10

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(STAMP)
	$(BIN)/capfilt schemas schemas

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
