# SPDX-License-Identifier: Apache-2.0
# `make` = check + test. A fresh machine needs Python 3.11+ and make: the rest is installed here, in .venv*.
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV
export UV_PYTHON_DOWNLOADS = never
BIN := .venv/bin
.PHONY: all check format-check lint types imports docs-check fix test demo bench bench-grown bench-random docs clean
.NOTPARALLEL:

all: check test

check: format-check lint types imports docs-check

format-check: .venv/.dev
	$(BIN)/ruff format --check

lint: .venv/.dev
	$(BIN)/ruff check

types: .venv/.dev
	$(BIN)/mypy

imports: .venv/.dev ## the layers of the program, see pyproject.toml
	$(BIN)/lint-imports --no-logo --cache-dir .import_linter_cache

docs-check: .venv/.dev ## fails when a generated page is stale
	$(BIN)/python scripts/docs.py --check

fix: .venv/.dev ## format, and repair what can be repaired
	$(BIN)/ruff check --fix || true
	$(BIN)/ruff format

test: .venv/.dev ## ARGS="tests/unit -k name" narrows it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(JOBS),2) $(ARGS)

demo: .venv/.run ## the whole method, offline, on the bundled model
	$(BIN)/heretic demo $(ARGS)

bench: .venv/.dev
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-grown: .venv/.dev
	$(BIN)/python -m benchmarks.run --grown $(ARGS)

bench-random: .venv/.dev
	$(BIN)/python -m benchmarks.run --random $(ARGS)

docs: .venv/.dev ## write the generated pages
	$(BIN)/python scripts/docs.py

clean:
	rm -rf .venv .venv-uv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist

.venv/.run: pyproject.toml
	scripts/bootstrap -e .
	touch $@

.venv/.dev: pyproject.toml
	scripts/bootstrap -e '.[all]' --group dev
	touch .venv/.run $@
