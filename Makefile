# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
DEPS := pyproject.toml constraints.txt
# Two worker processes share the cores; without this each would start a thread per core.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1

.PHONY: demo demo-full test test-all lint bench clean

demo: $(VENV)/.demo  ## the whole job on the embedded data: train, prune, recover, quantize, export, verify, report
	$(BIN)/penjing demo --out runs/demo $(if $(wildcard runs/demo),--resume)

demo-full: $(VENV)/.demo  ## the same with the honest baselines beside it
	$(BIN)/penjing demo --full --out runs/demo-full $(if $(wildcard runs/demo-full),--resume)

test: $(VENV)/.dev lint  ## lint, types and the suite
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -q

test-all: $(VENV)/.dev lint  ## the suite with the slow checks
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -q -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## everything measured beside its peers (hours)
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Where ensurepip is missing (Debian's python3-venv), venv fails and leaves a python without pip: it must not count as made.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Penjing needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: $(VENV)/bin/python $(DEPS)
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PIP) --editable '.[tf]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python $(DEPS)
	@echo "Setting up $(VENV) for development (a few minutes, once)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
