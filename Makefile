# Every target makes what it needs on a fresh machine. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo play test lint docs bench soak clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

# torch goes first, alone: a resolver that sees other packages as well may pick a CUDA build.
$(VENV)/.runtime: pyproject.toml $(CONSTRAINTS)
	@echo "installing into $(VENV), which takes one to three minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/.web: $(VENV)/.runtime
	$(PIP) -e ".[web]"
	touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e ".[docs]"
	touch $@

demo: $(VENV)/.runtime  ## the method on the embedded digits, in about three minutes with installation: runs/demo/report.html
	$(BIN)/fewstep demo

play: $(VENV)/.web  ## a page with the guidance slider, on the models of the demo
	$(BIN)/fewstep play $(addprefix runs/demo/,student-4 student-2 student-1) --teacher runs/demo/teacher --open

test: $(VENV)/.dev  ## all tests, on every core
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.dev  ## ruff, mypy (strict), the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=src:. $(BIN)/mypy --explicit-package-bases benchmarks/gpu/*.py
	$(BIN)/lint-imports

docs: $(VENV)/.docs  ## the documentation, into site/
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev  ## ratios of speed, taken within one run
	$(BIN)/python benchmarks/run.py

soak: $(VENV)/.dev  ## kill, stop and crowd every command at random for SOAK_MINUTES (30), and compare what they made
	$(BIN)/python -m soak

clean:  ## remove the environment and what was built
	rm -rf $(VENV) site build dist
