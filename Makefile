# Every target sets up what it needs from nothing; stamps in .venv keep it from being done twice.
PYTHON ?= python3
# Installed first and pinned: a CPU build that pip is configured for is taken, and no later requirement replaces it.
TORCH ?= torch==2.13.0
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what is imported when it is imported; all of torch and sympy beforehand takes longer than the install.
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile $(PIP_ARGS)
# Two makes at once take turns where flock exists.
LOCKED := $(if $(shell command -v flock 2>/dev/null),flock .venv.lock,) sh -ec

# The wrapper would ask the network for newer versions in every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: run test test-fast check format wheel clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@if [ -t 1 ]; then $(BIN)/presswork run --model sudoku --watch; else $(BIN)/presswork run --model sudoku; fi

# Tests take one thread each, so that several files run side by side.
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile -m "not slow"

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/docs tests/repo

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/run.stamp
	$(BIN)/pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .venv.lock build dist .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A second make waits for the lock and then finds the stamp fresh.
$(VENV)/run.stamp: pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "presswork needs Python 3.11 or newer as '$(PYTHON)'; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(LOCKED) '[ $@ -nt $< ] || { echo "setting up $(VENV): $(TORCH) and what presswork needs (minutes, once)" >&2; \
		"$(PYTHON)" -m venv $(VENV); $(PIP) "$(TORCH)"; $(PIP) --editable .; \
		echo "compiling kernels" >&2; $(BIN)/presswork run --model sudoku >/dev/null 2>&1 || true; touch $@; }'

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@$(LOCKED) '[ $@ -nt $< ] || { echo "setting up $(VENV): test and check tools" >&2; \
		$(PIP) --editable ".[dev]"; touch $@; }'
