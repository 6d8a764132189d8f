# demo: train a small model and see its run    test: everything that must hold
# check: style, types, layers                  bench: what a log call costs, beside the alternatives
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check bench clean

demo: $(VENV)/ready
	$(RUN) examples/demo.py $(if $(ONCE),--once) $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/bench
	$(RUN) benchmarks/log_call.py
	$(RUN) benchmarks/training_step.py

clean:
	rm -rf $(VENV) .demo

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py src/tensormeter/record/_writer.c
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@
