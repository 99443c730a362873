# make demo | test | check | bench | clean. Set-up is part of each; PYTHON names the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*) setup.py pyproject.toml constraints.txt

.PHONY: setup demo test check bench clean

setup: $(READY)

# Installed again when the native code or the packaging changes.
$(READY): $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -U pip setuptools
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/avops demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info avops/*.so .pytest_cache .mypy_cache .ruff_cache
