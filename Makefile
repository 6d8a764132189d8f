# demo: train a small model and see its run    test: everything that must hold
# check: style, types, layers, wording        bench: what it costs, compared with the alternatives
# chaos: the tests of faults, with 500 kills each, every byte, ten times the flipped bits, and a million inputs for the decoders
# power: power fails a hundred times each, for a run at each durability and for the server
# fuzz: what a request may cost, tried with bodies that expand into many things (SEEDS of them random)
# types: the page's types of the API's documents, after a change of server/api/schemas.py or request_schemas.py
# screenshots: pictures of every view of the web page, in screenshots/
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Tests start thousands of processes. Without bytecode files, each would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check bench chaos power fuzz types screenshots clean tools

demo: $(VENV)/ready
	$(RUN) examples/demo.py $(if $(ONCE),--once) $(ARGS)

test: $(VENV)/ready tools
	$(RUN) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(RUN) tests/support/wording.py
	@if [ -d ui/node_modules ]; then cd ui && npm run --silent check; else echo "check: the page's types need Node; left out"; fi

bench: $(VENV)/bench
	$(RUN) benchmarks/log_call.py
	$(RUN) benchmarks/console.py
	$(RUN) benchmarks/training_step.py
	$(RUN) benchmarks/integrations.py
	$(RUN) benchmarks/gpu_step.py
	$(RUN) benchmarks/instruments.py
	$(RUN) benchmarks/histogram.py
	$(RUN) benchmarks/phases.py
	$(RUN) benchmarks/sensors.py
	$(RUN) benchmarks/delivery.py
	$(RUN) benchmarks/wide_rows.py
	$(RUN) benchmarks/rest.py
	$(RUN) benchmarks/live.py
	$(RUN) benchmarks/server.py
	$(RUN) benchmarks/reads.py
	$(RUN) benchmarks/logs.py
	$(RUN) benchmarks/page.py
	$(RUN) benchmarks/page_width.py

chaos: $(VENV)/ready
	CHAOS_KILLS=500 TENSORMETER_TEST_CUTS=100 TENSORMETER_TEST_KILLS=500 TENSORMETER_TEST_FUZZ=1000000 $(RUN) -m pytest --timeout 36000 \
	  tests/faults tests/agent/test_spool_model.py tests/server/store/test_server_crash.py tests/server/store/test_store_integrity.py tests/server/limits/test_server_fuzz.py tests/server/limits/test_server_expansion.py \
	  tests/server/store/test_store_clickhouse.py tests/server/store/test_clickhouse_outages.py $(ARGS)

power: $(VENV)/ready
	TENSORMETER_TEST_CUTS=$(or $(CUTS),100) $(RUN) -m pytest --timeout 36000 tests/faults/test_power.py $(ARGS)

fuzz: $(VENV)/ready
	PYTHONPATH=tests $(RUN) -m support.expansion --seeds $(or $(SEEDS),200)

# Debian's Chromium, Prometheus and libfuse: the tests of the page, of scraping and of odd disks need them, and skip where they
# cannot be had.
tools:
	@command -v chromium >/dev/null && command -v prometheus >/dev/null && ldconfig -p | grep -q libfuse.so.2 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core prometheus libfuse2 >/dev/null; } || \
	  echo "Chromium, Prometheus and libfuse cannot be installed here: their tests will be skipped"

types: $(VENV)/ready
	cd ui/types && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	$(RUN) ui/types/generate.py

screenshots: $(VENV)/ready
	PYTHONPATH=tests $(RUN) tests/ui/screenshots.py $(ARGS)

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py build_hooks/page.py build_hooks/extensions.py \
  src/tensormeter/otlp/_number_blocks.c src/tensormeter/record/rows/_writer.c src/tensormeter/record/rows/_row_writer.c src/tensormeter/record/rows/_words.h src/tensormeter/session/exit_hooks/_sigterm.c $(wildcard ui/*.json ui/*.mjs ui/src/*.* ui/src/*/*.*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(RUN) -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, while pip uses one; some packages have files for other Pythons
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

clean:
	rm -rf $(VENV) .demo screenshots ui/node_modules ui/types/node_modules src/tensormeter/server/static
