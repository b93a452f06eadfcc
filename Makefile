# All targets write to the checkout only: a virtual environment in .venv, results in demo/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Packages that mypy checks.
TYPED  := hybrid_rt hybrid_export hybrid_train

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check types format bench bench-quick clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements/dev.txt requirements/no-deps.txt pyproject.toml
	@echo "== Setting up $(VENV) (once; PyTorch is several GB)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make needs Python 3.11 or newer (pip install works with 3.10 too); set PYTHON=python3.11, for example" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv failed: on Debian or Ubuntu, apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

demo: $(STAMP)  ## Train, export and predict on real mammograms, in minutes on 2 CPU cores
	$(BIN)/python -m hybrid_export.demo --output demo

test: $(STAMP)  ## Run the test suite (tests that need a GPU are skipped without one)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)  ## Run the full-size and minutes-long tests too
	$(BIN)/python -m pytest -m slow

check: $(STAMP) types  ## Check formatting, lint, types and vocabulary
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/tools/check_words.py

types: $(STAMP)  ## Check the types of the strict packages
	$(BIN)/mypy $(TYPED:%=-p %)

format: $(STAMP)  ## Format the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Compare with PyTorch, ONNX Runtime and OpenVINO on this machine
	$(BIN)/python -m pytest benchmarks

bench-quick: $(STAMP)  ## Run every benchmark row with small networks and three rounds
	$(BIN)/python -m pytest benchmarks --preset tiny --rounds 3 -k "not training and not batch_8" --deselect benchmarks/test_rows.py::test_load

clean:  ## Remove the virtual environment and the demo's results
	rm -rf $(VENV) demo
