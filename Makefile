# Every target installs what it needs first; `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test proofs lint format bench fuzz lock wheel clean

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## install everything into .venv (pinned, with hashes)

$(READY): requirements/lock.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/lock.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## the whole path on 69,659 real purchases: ingest, views, erasure, receipt
	@$(BIN)/shredlake demo

test: $(READY) ## lint, types, layers and every test this machine can run
	@$(BIN)/python -m tests.run

proofs: $(READY) ## break what each guarantee rests on, in a copy, and see its tests fail, or: make proofs ONLY=lease
	@$(BIN)/python -m tests.proofs run $(if $(ONLY),--only "$(ONLY)")

lint: $(READY) ## ruff, mypy strict, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## format the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(READY) ## run every benchmark suite, or one: make bench SUITE=path
	@$(BIN)/python -m bench $(SUITE)

fuzz: $(READY) ## fuzz the envelope, or TARGET=doors, until it is stopped, or for SECONDS=60; goes on where it stopped
	@$(BIN)/python -m fuzz.$(or $(TARGET),envelope) $(or $(SECONDS),0) build/fuzz/$(or $(TARGET),envelope)

lock: $(READY) ## resolve the dependencies again into requirements/lock.txt
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate requirements/build.in -q -o requirements/lock.txt

wheel: $(READY) ## build the wheel into dist/
	@$(BIN)/python -m build --no-isolation --wheel

clean: ## remove what the targets above made
	rm -rf $(VENV) build dist
