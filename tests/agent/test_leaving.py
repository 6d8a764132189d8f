"""An agent that is about to end, while another process of its run comes."""

import fcntl
import threading

import pytest

import tensormeter
from tensormeter.agent.delivery import delivery
from tensormeter_exporters.experiment import ExperimentExporter


@pytest.fixture
def shutdown(monkeypatch):
    """An exporter takes as long to shut down as the test wants: two events, that it has begun, and that it may end."""
    begun, may_end = threading.Event(), threading.Event()

    class Slow(ExperimentExporter):
        def shutdown(self):
            begun.set()
            assert may_end.wait(300)
            super().shutdown()

    monkeypatch.setattr(delivery, "load_exporter", {"experiment": Slow}.__getitem__)
    yield begun, may_end
    may_end.set()


def test_a_run_that_begins_again_does_not_wait_for_an_exporter_to_shut_down(
    shutdown, tmp_path, receiver, run_settings, wait_for
):
    begun, may_end = shutdown
    state = tmp_path / "state"
    settings = run_settings(run_id="again")
    with tensormeter.init(settings=settings) as run:
        run.log({"x": 1.0}, 1)
    assert begun.wait(300)
    with (state / "runs" / ".lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if another process holds it
    with tensormeter.init(settings=settings) as run:
        run.log({"x": 2.0}, 2)
        may_end.set()
    assert sorted(receiver.rows()) == [(1, (("x", 1.0),)), (2, (("x", 2.0),))]
    wait_for(lambda: not [*(state / "runs").glob("*@*")], "the run directory is gone")
