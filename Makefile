# Every target sets up what it needs. `make demo` is the first thing to run.
# The first of these that runs and is 3.11 or 3.12; name another with PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv || echo $(BIN)/uv)
SEGRAY_DATA ?= ../shared/data
export SEGRAY_DATA

.PHONY: setup demo test check bench faults slow study real lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml seg_models/version.py
	PYTHON="$(PYTHON)" sh .ci/setup
	touch $@

demo: setup
	$(BIN)/segray demo --output out/demo

# Two processes: the tests that start Ray run in the first, which share one local cluster, the rest in the second.
# Every test belongs to `test`, `faults` or `slow`; those that kill processes but are quick belong to the first two.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.run --output out/bench.json

# Those that measure a time to recover come last in the first process, when the second has done the rest.
FAULT_FILES = $(shell grep -rl --include='test_*.py' --exclude-dir=faults 'mark\.faults' tests)

faults: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m faults --durations 12 $(FAULT_FILES) tests/faults

slow: setup
	$(BIN)/python -m pytest -q -m "slow and not faults"

study: setup
	$(BIN)/python -m benchmarks.study --data $(SEGRAY_DATA) --output out/study

real: setup
	$(BIN)/segray real --data $(SEGRAY_DATA) --output out/real

lock: setup
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate -o requirements.lock

clean:
	rm -rf $(VENV) out build *.egg-info
