"""`sync` always ends and reports undelivered data and the reason per destination; quarantined items can be resent."""

import gzip
import os
import threading
from contextlib import closing

import numpy as np
import pytest

from tensormeter import Settings
from tensormeter.agent.delivery import delivery
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import sync_runs, wake_agent
from tensormeter.exporter import Accepted, Rejected, Retry, Unauthorized
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics


@pytest.fixture
def outcomes():
    """The answers of exporters by destination: an outcome, a list of outcomes, or a function of the request."""
    return {}


@pytest.fixture
def exported(outcomes, monkeypatch):
    """The accepted requests, by destination. All exporters are ours."""
    accepted: dict[str, list] = {}

    class Scripted:
        def __init__(self, config):
            self._name = config.destination
            made = outcomes.get(f"making {self._name}")
            if made is not None:
                made()

        def export(self, request):
            answer = outcomes.get(self._name, Accepted())
            if isinstance(answer, list):
                answer = answer.pop(0) if answer else Accepted()
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, Accepted):
                accepted.setdefault(self._name, []).append(request)
            return answer

        def shutdown(self):
            pass

    monkeypatch.setattr(delivery, "load_exporter", lambda name: Scripted)
    return accepted


@pytest.fixture
def left(tmp_path, exported):
    """Makes a run that has left requests: of one point each, for these destinations."""

    def create(*destinations, named=None, requests=2, **settings):
        given = Settings(
            directory=tmp_path / "state",
            buffer_directory=tmp_path / "rings",
            project="left",
            exporters=named or destinations,
            **settings,
        )
        with runs_locked(given.directory):
            run = RunDirectory.create(given, "r", "r")
        with closing(Spool(run.spool)) as spool:
            for number in range(requests):
                spool.put([points(number)], destinations, "p", {}, started=True, ended=True)
        return run

    return create


def points(*values, name="m"):
    times = np.array([1 + value for value in values], np.uint64)
    gauge = Gauge(name, times, np.array(values, float))
    return Encoded("metrics", gzip.compress(encode_metrics([Batch({}, [gauge])])), len(values))


def values(requests):
    return [
        value
        for request in requests
        for batch in decode_metrics(gzip.decompress(request.body))
        for gauge in batch.gauges
        for value in gauge.values.tolist()
    ]


def only(run, **options):
    (result,) = sync_runs(run.path.parents[1], **options)
    return result


def test_one_destination_fails_while_another_has_nothing_to_do(left, outcomes, exported):
    outcomes["b"] = Retry("it is away")
    result = only(left("a", "b"))
    assert not result.delivered
    assert result.message == "b: it is away (2 items waiting)"
    assert len(exported["a"]) == 2


def test_what_waits_for_a_destination_that_is_not_named_is_said(left, exported):
    result = only(left("a", "former", named=["a"]))
    assert "TENSORMETER_EXPORTERS=former tensormeter sync" in result.message
    assert "(2 items waiting)" in result.message
    assert (len(exported["a"]), result.leftover.waiting) == (2, {"former": 2})
    (result,) = sync_runs(result.run.path, given=True, caller=Settings(exporters=["former"]))
    assert (result.outcome, len(exported["former"])) == ("delivered", 2)


def test_a_token_is_refused(left, outcomes, exported):
    outcomes["a"] = Unauthorized("the token is refused")
    result = only(left("a", "b"))
    assert result.message == "a: the token is refused (2 items waiting)"
    assert len(exported["b"]) == 2


def test_an_exporter_cannot_be_made(left, outcomes, exported):
    def fail():
        raise RuntimeError("no licence")

    outcomes["making a"] = fail
    result = only(left("a", "b"))
    assert result.message == "a: RuntimeError: no licence (2 items waiting)"
    assert len(exported["b"]) == 2


def test_there_is_no_such_exporter(left, exported, monkeypatch):
    """Another destination is delivered to all the same."""
    from tensormeter.errors import SettingsError

    ours = delivery.load_exporter

    def load(name):
        if name == "a":
            raise SettingsError("there is no exporter 'a'")
        return ours(name)

    monkeypatch.setattr(delivery, "load_exporter", load)
    result = only(left("a", "b"))
    assert result.message == "a: there is no exporter 'a' (2 items waiting)"
    assert len(exported["b"]) == 2


@pytest.mark.parametrize("where", ["export", "constructor"])
def test_an_exporter_that_hangs_is_given_up(left, outcomes, exported, monkeypatch, where):
    monkeypatch.setattr(delivery, "_HANGING", 0.3)
    monkeypatch.setattr(delivery, "_HANGING_CREATION", 0.3)
    monkeypatch.setattr("tensormeter.agent.delivery.deliveries._STOP_TIMEOUT", 0.1)
    over = threading.Event()
    if where == "export":
        outcomes["a"] = lambda request: Accepted() if over.wait(300) else None
    else:
        outcomes["making a"] = lambda: over.wait(300)
    try:
        result = only(left("a", "b", export_timeout=0.1))
    finally:
        over.set()
    assert result.message.startswith("a: the exporter has not returned")
    assert len(exported["b"]) == 2


def test_a_slow_receiver_gets_everything(left, outcomes, exported, monkeypatch):
    """An attempt may take as long as `export_timeout`, also the one that comes after many."""
    monkeypatch.setattr(delivery, "_HANGING", 5.0)
    pause = threading.Event()

    def slow(request):
        pause.wait(0.05)
        return Accepted()

    outcomes["a"] = slow
    result = only(left("a", requests=30))
    assert (result.delivered, result.outcome) == (True, "delivered")
    assert len(exported["a"]) == 30


def test_where_the_endpoint_refuses_the_option_is_named(left, outcomes):
    outcomes["experiment"] = Retry("Connection refused")
    run = left("experiment", endpoint="http://127.0.0.1:9")
    assert (
        "the run's destination is the server at http://127.0.0.1:9; start it, or choose another one with --endpoint"
        in (only(run).message)
    )


def test_what_a_receiver_leaves_out_after_the_run_ended_is_reported(left, outcomes, exported):
    """Once, and not again by later calls."""
    outcomes["a"] = [Accepted(1, "one was bad")]
    result = only(left("a"))
    assert (result.delivered, result.outcome) == (True, "delivered, but 1 points were lost: refused 1")
    assert not result.is_complete
    assert [request.signal for request in exported["a"]] == ["metrics", "metrics", "logs"]


def test_a_report_that_is_lost_itself_ends(left, outcomes):
    """Each of them costs one item; after a few the agent leaves."""
    outcomes["a"] = lambda request: Accepted(1, "never")
    result = only(left("a"))
    assert result.delivered
    assert result.leftover.losses["refused"] == 2 + 3


def refuse(request):
    return Rejected("no", divide=True)


def test_retry_sends_what_was_set_aside_under_its_ids(left, outcomes, exported):
    outcomes["a"] = refuse
    run = left("a", "b")
    result = only(run)
    assert (result.delivered, result.is_complete, len(exported["b"])) == (True, False, 2)
    assert "a: 2 items: m (gauge): no" in result.outcome
    assert f"tensormeter spool retry {run.path.name}" in result.outcome
    with closing(Spool(run.spool)) as spool:
        ids = [row[0] for row in spool._rows("SELECT id FROM quarantine ORDER BY number")]
        assert spool.retry()[:2] == (2, 2)
        assert (spool.quarantined_items(), spool.waiting_items()) == (0, {"a": 2})
        assert spool.retry()[:2] == (0, 0)
    del outcomes["a"]
    assert only(run).outcome == "delivered"
    assert [request.id for request in exported["a"]] == ids == [request.id for request in exported["b"]]
    assert not run.path.exists()


def test_retry_tries_the_good_parts_of_what_was_refused_throughout(left, outcomes, exported):
    """The memory of refused kinds does not set them aside unsent."""
    outcomes["a"] = refuse
    run = left("a", requests=40)
    only(run)
    with closing(Spool(run.spool)) as spool:
        spool.put([points(100, 101, 102, 103)], ["a"], "p", {}, started=True, ended=True)
    only(run)
    outcomes["a"] = lambda request: refuse(request) if 102.0 in values([request]) else Accepted()
    with closing(Spool(run.spool)) as spool:
        assert spool.retry().items == 44
    result = only(run)
    assert sorted(values(exported["a"])) == [float(value) for value in [*range(40), 100, 101, 103]]
    assert [items for _, _, items in result.leftover.rejected] == [1]


def test_retry_counts_what_is_damaged_and_leaves_what_was_given_up(left, outcomes):
    outcomes["a"] = refuse
    run = left("a", requests=3)
    only(run)
    with closing(Spool(run.spool)) as spool:
        spool._database.execute("UPDATE quarantine SET body = x'00' WHERE number = 1")
        spool._database.execute("UPDATE quarantine SET body = x'' WHERE number = 2")
        assert spool.retry() == (1, 1, 1, 1)
        assert (spool.losses(), spool.quarantined_items()) == ({"damaged": 1}, 1)


def test_an_agent_that_is_at_work_sends_what_is_put_back(receiver, run_settings, answering, tmp_path, wait_for):
    import tensormeter

    receiver.routes["/v1/metrics"] = answering(400)
    run = tensormeter.init("p", id="r", settings=run_settings(agent="process"))
    run.log({"x": 1.0}, 1)
    (directory,) = (RunDirectory.open(path) for path in (tmp_path / "state" / "runs").glob("r@*"))
    with closing(Spool(directory.spool)) as spool:
        wait_for(lambda: spool.quarantined_items() == 2 and spool.pending() == 0, "it is refused")
        receiver.routes.clear()
        spool.retry()
        assert "was asked to retry now" in wake_agent(directory)
        wait_for(lambda: receiver.rows() == {(1, (("x", 1.0),)): 1}, "it is sent")
    run.finish()
    wait_for(lambda: not directory.path.exists(), "nothing is left")


def test_a_process_that_is_no_agent_is_sent_no_signal(left):
    """`agent.lock` may contain any number."""
    run = left("a")
    lock = run.try_agent_lock()
    try:
        os.pwrite(lock, b"1\n", 0)  # no process of ours, and no agent
        assert wake_agent(run) == "its agent is running"
        os.pwrite(lock, b"99999999999999999999\n", 0)
        assert wake_agent(run) == "its agent is running"
    finally:
        os.close(lock)
