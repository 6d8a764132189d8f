# demo: train a small model and see its run    test: everything that must hold
# check: style, types, layers                  bench: what a log call costs, beside the alternatives
# chaos: the tests of faults, with 500 kills each, every byte and ten times the flipped bits
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check chaos bench clean

demo: $(VENV)/ready
	$(RUN) examples/demo.py $(if $(ONCE),--once) $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

chaos: $(VENV)/ready
	CHAOS_KILLS=500 $(RUN) -m pytest --timeout 14400 tests/faults $(ARGS)

bench: $(VENV)/bench
	$(RUN) benchmarks/log_call.py
	$(RUN) benchmarks/training_step.py
	$(RUN) benchmarks/delivery.py

clean:
	rm -rf $(VENV) .demo

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py src/tensormeter/record/_writer.c
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@
