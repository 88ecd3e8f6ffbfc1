# `make run` and `make test` are all a newcomer needs; both install what they need into .venv first, once.

PYTHON ?= python3
PYTEST_ARGS ?=
# Processes the tests run in.
TEST_WORKERS ?= 2
# What `make proto-breaking` compares the contract with.
AGAINST ?= .git\#branch=main,subdir=protos

VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/taste/v1/*.proto)
UV_INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -b constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test fuzz check lint format types protos proto-lint proto-breaking install build constraints clean distclean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

run: $(VENV)/.run-installed ## Start a server, send it a recording, save what comes back
	@$(BIN)/python -m taste_grpc.demo

test: $(VENV)/.dev-installed ## Run the tests
	@$(BIN)/python -m pytest -m 'not slow' -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

fuzz: $(VENV)/.dev-installed ## Send the server FUZZ_EXAMPLES (20,000) made-up requests; FUZZ_SEED repeats a run
	@seed=$${FUZZ_SEED:-$$(date +%s)}; echo "FUZZ_SEED=$$seed"; \
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-20000} $(BIN)/python -m pytest -s --hypothesis-seed=$$seed $(PYTEST_ARGS) tests/integration/test_fuzz.py

check: lint types proto-lint test ## Everything that must pass

lint: $(VENV)/.dev-installed ## Style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev-installed ## Repair style, as far as that goes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev-installed ## Types
	@$(BIN)/mypy

proto-lint: $(VENV)/.dev-installed ## Style of the contract
	@$(BIN)/buf lint protos
	@$(BIN)/buf format --diff --exit-code protos

proto-breaking: $(VENV)/.dev-installed ## Compare the contract with AGAINST (default: branch main)
	@$(BIN)/buf breaking protos --against '$(AGAINST)'

protos: $(VENV)/.dev-installed ## Build the Python stubs from protos/
	@$(BIN)/python clients/python/hatch_build.py

install: $(VENV)/.dev-installed ## Install everything into .venv

build: $(VENV)/.dev-installed ## Build sdists and wheels of both distributions into dist/
	@$(BIN)/python -m build --installer uv --outdir dist clients/python
	@$(BIN)/python -m build --installer uv --outdir dist .

# torch comes first, and through pip: pip finds the CPU build where an index offers it and takes the index's default
# build (CUDA on Linux) elsewhere; uv then leaves the torch that is there alone.
$(VENV)/.torch-installed: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "taste-grpc needs Python 3.11 or newer; set PYTHON")'
	@$(PYTHON) -m venv $(VENV)
	@echo 'Installing torch into $(VENV) (once, a minute or two) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	@touch $@

# Installing builds the stubs, so a changed contract installs again.
$(VENV)/.run-installed: $(VENV)/.torch-installed pyproject.toml clients/python/pyproject.toml clients/python/hatch_build.py $(PROTOS)
	@echo 'Installing taste-grpc into $(VENV) ...'
	@$(UV_INSTALL) -e clients/python -e '.[embedded,voice,web,openai]'
	@$(UV_INSTALL) --no-deps --group no-deps
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed
	@echo 'Installing what tests need into $(VENV) ...'
	@$(UV_INSTALL) -e '.[dev,plot,whisper,voxtral]'
	@touch $@

constraints: $(VENV)/.dev-installed ## Write the versions in .venv to constraints.txt
	@{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//; /^(nvidia-|triton|pip==)/d'; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove what tools left behind
	@rm -rf dist build out .mypy_cache .ruff_cache .pytest_cache .hypothesis clients/python/dist clients/python/src/taste
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -f $(VENV)/.run-installed $(VENV)/.dev-installed

distclean: clean ## Remove .venv as well
	@rm -rf $(VENV)
