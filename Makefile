# demo: train a small model and see its run    test: everything that must hold
# check: style, types, layers                  bench: what a log call costs, what the server takes, how quick the page is
# chaos: hundreds of kills of the server       screenshots: pictures of every view of the web page, in screenshots/
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check bench chaos screenshots clean

demo: $(VENV)/ready
	$(RUN) examples/demo.py $(if $(ONCE),--once) $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@if [ -d ui/node_modules ]; then cd ui && npm run --silent check; else echo "check: the page's types need Node; left out"; fi

bench: $(VENV)/bench
	$(RUN) benchmarks/log_call.py
	$(RUN) benchmarks/training_step.py
	$(RUN) benchmarks/server.py
	$(RUN) benchmarks/page.py

chaos: $(VENV)/ready
	TENSORMETER_TEST_KILLS=500 $(RUN) -m pytest --timeout 36000 tests/server/test_server_crash.py $(ARGS)

screenshots: $(VENV)/ready
	$(RUN) tests/ui/screenshots.py $(ARGS)

clean:
	rm -rf $(VENV) .demo screenshots ui/node_modules src/tensormeter/server/static

# Chromium is for the tests of the page, which skip without it.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	  echo "no Chromium, and it cannot be installed here: the tests of the page will be skipped"
	touch $@

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@
