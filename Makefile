# Everything runs in .venv at the repository's root; each target makes it first where it is missing or out of date.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
DEMO := demo

.PHONY: help venv demo test lint bench
.DEFAULT_GOAL := help

help:
	@echo "make venv   create $(VENV) with the pinned releases of constraints.txt"
	@echo "make demo   explain a bundled scene; the last line is the path of the report"
	@echo "make test   run the tests"
	@echo "make lint   style, formatting, types, and the order of the floors"
	@echo "make bench  time pullback beside its peers; half an hour on an idle machine (OPTIONS=\"--networks scenes\" for less)"

venv: $(STAMP)

# torch first, then torchvision and timm without their dependencies, so that neither can replace it.
$(STAMP): pyproject.toml constraints.txt
	@set -euo pipefail; \
	for python in $(PYTHON) python3 python3.11 python3.12 python3.13; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "no Python of version 3.11 or newer found; install one, or name it: make venv PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	$$found -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision timm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/pullback explain --out $(DEMO) --overwrite

test: $(STAMP)
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# zennit and captum ask for torch and torchvision, which are there already: the constraints keep them as they are.
$(PEERS): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[bench]'
	@touch $@

bench: $(PEERS)
	@$(BIN)/python -m benchmarks $(OPTIONS)
