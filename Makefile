# Every target sets up what it needs. `make demo` is the first thing to run.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SEGRAY_DATA ?= ../shared/data
export SEGRAY_DATA

.PHONY: setup demo test check bench faults study real lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	PYTHON="$(PYTHON)" sh .ci/setup
	touch $@

demo: setup
	$(BIN)/segray demo --output out/demo

# Two processes: the tests that start Ray share one local cluster in the first, the rest run in the second.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.run --output out/bench.json

faults: setup
	$(BIN)/python -m pytest -q -m faults

study: setup
	$(BIN)/python -m benchmarks.study --data $(SEGRAY_DATA) --output out/study

real: setup
	$(BIN)/segray real --data $(SEGRAY_DATA) --output out/real

lock: setup
	$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url -o requirements.lock

clean:
	rm -rf $(VENV) out build *.egg-info
