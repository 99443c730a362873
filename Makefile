# make demo | test | check | bench | clean. Set-up is part of each; PYTHON names the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# setuptools warns at length about editable installs; pip's own errors still show.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q -c constraints.txt
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*) setup.py pyproject.toml constraints.txt

.PHONY: setup demo test check bench clean

setup: $(READY)

# Installed again when the native code or the packaging changes.
$(READY): $(SOURCES)
	@echo "setting up $(VENV): avops, torch, transformers and the test tools (about 3 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -U pip setuptools
	@$(PIP) -e '.[dev]'
	@$(BIN)/avops doctor
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
	rm -rf $(VENV) build dist *.egg-info avops/*.so avops/_combine.* .pytest_cache .mypy_cache .ruff_cache
