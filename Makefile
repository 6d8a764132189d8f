# demo: train a small model and see its run    test: everything that must hold
# check: style, types, layers                  bench: what it costs, beside the alternatives
# chaos: the tests of faults, with 500 kills each, every byte and ten times the flipped bits
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check bench chaos clean tools

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
	$(RUN) benchmarks/instruments.py
	$(RUN) benchmarks/histogram.py
	$(RUN) benchmarks/phases.py
	$(RUN) benchmarks/sensors.py
	$(RUN) benchmarks/delivery.py
	$(RUN) benchmarks/server.py

chaos: $(VENV)/ready
	CHAOS_KILLS=500 TENSORMETER_TEST_KILLS=500 $(RUN) -m pytest --timeout 36000 tests/faults tests/server/test_server_crash.py $(ARGS)

# Debian's Prometheus, which some tests scrape with; where it cannot be installed they are skipped and say so.
tools:
	command -v prometheus || { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } \
	|| echo "prometheus is not installed: its tests will be skipped"

clean:
	rm -rf $(VENV) .demo

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py src/tensormeter/record/_writer.c
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@
