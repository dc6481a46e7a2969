# make demo    the whole way of a secret, in one terminal
# make test    the test suite
# make lint    format check, lint, types, architecture, security
# make format  put the code in form
# make bench   measure a broker that is started for it
# make lock    renew requirements/lock.txt from pyproject.toml
.PHONY: demo test lint format bench lock env
.DEFAULT_GOAL := test

BIN := .venv/bin

env:
	@tools/environment

demo: env
	@$(BIN)/python -m keybroker.cli.demo

test: env
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: env
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bandit -q -r src -c pyproject.toml

format: env
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: env
	@$(BIN)/python -m benchmarks $(ARGS)

lock:
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --group dev --all-extras pyproject.toml -o requirements/lock.txt
