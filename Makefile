# The project's commands; `make help` lists them. CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-long fuzz study check format clean

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## Unlearn in the embedded world and show the report (3 minutes, offline, CPU)
	$(BIN)/spunge demo

test: $(INSTALLED)  ## Run the test suite
	$(BIN)/pytest -n 2 -m 'not long'

test-long: $(INSTALLED)  ## Run what is too slow for `make test`
	$(BIN)/pytest -m long

fuzz: $(INSTALLED)  ## Try COUNT=10000 broken inputs, drawn by SEED=0: no traceback, no hang, no file elsewhere
	COUNT=$(or $(COUNT),10000) SEED=$(or $(SEED),0) $(BIN)/pytest -n 2 -m long -k many_broken \
		--hypothesis-seed=$(or $(SEED),0) tests/faults/test_fuzz.py

study: $(INSTALLED)  ## Run the study NAME=lab-toxicity, with DATA=folder and MODEL=directory where it needs them
	$(BIN)/python studies/study.py studies/$(NAME).yaml --out $(or $(OUT),runs/studies) \
		$(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL)) $(if $(SEEDS),--seeds $(SEEDS))

check: $(INSTALLED)  ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)  ## Format, and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove everything that these commands made
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
