# Every target makes its own virtual environment in .venv, once, and installs what it needs into it.
#   make test ARGS="-k limits"     passes arguments on
#   make demo PYTHON=python3.12    takes another interpreter

PYTHON  ?= python3
WORKERS ?= auto
ARGS    ?=

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint lint-style lint-format lint-types lint-layers format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamps, so that someone who only wants to see the demo does not wait for the developers' tools, nor a developer
# for the peers of the benchmarks.
$(VENV)/.user: pyproject.toml constraints.txt hatch_build.py $(wildcard src/quadgrad/_core/search/kernel/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[cli,plots]'
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	$(INSTALL) -e '.[cli,plots,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.user
	$(INSTALL) -e '.[cli,plots,bench]'
	@touch $@

demo: $(VENV)/.user  ## fit models to real data: values, errors, gradients and a picture
	$(BIN)/quadgrad demo $(ARGS)

# Searches are compared node by node, and the last bits of a rule or a product of matrices, which decide close to
# rounding, are those of the BLAS kernels that NumPy and torch choose by the processor: here the same on all of x86.
SAME_BITS := OPENBLAS_CORETYPE=Haswell

# One thread in each of the parallel workers: with torch's own threads they would fight over the cores. Groups of tests
# stay in one worker: those of TensorFlow, which takes seconds and half a gigabyte to import.
test: $(VENV)/.dev  ## run the tests and the examples in docstrings (WORKERS=0: in one process)
	$(SAME_BITS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup $(ARGS)

bench: $(VENV)/.bench  ## time quadgrad beside its peers
	$(BIN)/python -m benchmarks $(ARGS)

lint: lint-style lint-format lint-types lint-layers  ## check style, format, types and layers (make -k lint: all, even if one fails)

lint-style: $(VENV)/.dev
	$(BIN)/ruff check

lint-format: $(VENV)/.dev
	$(BIN)/ruff format --check

lint-types: $(VENV)/.dev
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

lint-layers: $(VENV)/.dev
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev  ## rewrite the files in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the virtual environment and everything that was generated
	rm -rf $(VENV) build dist src/quadgrad/_core/search/kernel/_kernel*.so .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
