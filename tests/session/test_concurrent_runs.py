"""Runs that a library records at once, such as the trials of a sweep."""

import contextvars
import sys
import threading
from types import SimpleNamespace

import pytest

import tensormeter
from tensormeter import Settings
from tensormeter.session import open_runs


@pytest.fixture(autouse=True)
def _disabled(monkeypatch):
    monkeypatch.setenv("TENSORMETER_MODE", "disabled")
    yield
    tensormeter.finish()


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))


def test_concurrent_runs_do_not_become_current():
    trial = tensormeter.init(concurrent=True)
    assert tensormeter.run is None
    script = tensormeter.init()
    other = tensormeter.init(concurrent=True)
    assert tensormeter.run is script
    seen = []
    thread = threading.Thread(target=lambda: seen.append(tensormeter.run))
    thread.start()
    thread.join()
    assert seen == [script]
    for run in (trial, other, script):
        run.finish()
    assert tensormeter.run is None


def test_a_run_is_current_in_its_block():
    script = tensormeter.init()
    trial = tensormeter.init(concurrent=True)
    with trial.as_current():
        assert tensormeter.run is trial
        with tensormeter.init() as inner:
            assert tensormeter.run is inner
        assert tensormeter.run is trial
        trial.finish()
        assert tensormeter.run is script
    assert tensormeter.run is script
    script.finish()


def test_a_generator_that_is_closed_in_another_context_raises_nothing():
    with tensormeter.init(concurrent=True) as trial:

        def rows():
            with trial.as_current():
                yield 1

        generator = rows()
        next(generator)
        contextvars.copy_context().run(generator.close)
        assert generator.gi_frame is None


def test_notebooks_keep_the_other_runs_of_a_sweep(notebook):
    script = tensormeter.init()
    trials = [tensormeter.init(settings=Settings(), concurrent=True) for _ in range(2)]
    assert not any(run.finished for run in (script, *trials))
    last = tensormeter.init()
    assert script.finished
    assert not any(run.finished for run in trials)
    for run in (*trials, last):
        run.finish()


def test_runs_share_the_time_for_delivery_after_sigterm(monkeypatch):
    now = [100.0]
    timeouts = []

    def end(_outcome: object, timeout: float) -> None:
        timeouts.append(timeout)
        now[0] += 6

    monkeypatch.setattr(open_runs, "time", SimpleNamespace(monotonic=lambda: now[0], time_ns=lambda: 5))
    trials = [
        SimpleNamespace(
            _sigterm_word=[0], _end=end, settings=SimpleNamespace(sigterm_timeout=10.0, finish_timeout=60.0)
        )
        for _ in range(3)
    ]
    monkeypatch.setattr(open_runs, "all_open", lambda: trials)
    open_runs._on_sigterm(process_ends=False)
    assert timeouts == []
    open_runs._on_sigterm(process_ends=True)
    assert timeouts == [10.0, 4.0, 0.0]
    assert [trial._sigterm_word for trial in trials] == [[5]] * 3
