"""Delivery from a real spool to a real server that fails: order, backoff, quarantine, and that nobody waits for another."""

import gzip
import logging

import pytest

import tensormeter.pipeline.delivery as delivery_module
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, load_exporter
from tensormeter.pipeline.delivery import Delivery
from tensormeter.pipeline.spool import Encoded, Spool
from tensormeter.settings import Settings
from tensormeter_exporters.experiment import ExperimentExporter


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    yield spool
    spool.close()


@pytest.fixture
def put(spool):
    """Puts requests with these bodies into the spool."""

    def put(*bodies, destinations=("experiment",)):
        requests = [Encoded("metrics", gzip.compress(body), 2) for body in bodies]
        spool.put(requests, destinations, "p", {}, started=True, ended=False)

    return put


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "tensormeter.agent")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "tensormeter.agent"]


@pytest.fixture
def deliver(tmp_path, receiver, said):
    """Starts deliveries that wait a millisecond where they would wait for long; `delays` are those they would wait."""
    deliveries = []

    def start(destination="experiment", jitter=None, **settings):
        delays = []

        def note(delay):
            delays.append(delay)
            return 0.001

        resolved = Settings(**{"endpoint": receiver.url, "token": "secret", **settings})
        delivery = Delivery(destination, tmp_path / "spool.sqlite", resolved, lambda: None, jitter or note)
        delivery.delays = delays
        deliveries.append(delivery)
        delivery.start()
        return delivery

    yield start
    for delivery in deliveries:
        delivery.stop(30)


def bodies(receiver):
    return [gzip.decompress(request.body) for request in receiver.received]


def test_requests_arrive_in_order(deliver, put, spool, receiver, wait_for):
    put(b"1", b"2", b"3")
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    put(b"4")
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "what came later is delivered")
    assert bodies(receiver) == [b"1", b"2", b"3", b"4"]
    assert len(receiver.accepted()) == 4
    assert (delivery.failures, delivery.error, delivery.delays) == (0, "", [])


def test_the_same_request_is_sent_until_it_is_accepted(deliver, put, spool, receiver, answering, wait_for):
    receiver.script(answering(503), "reset", answering(200, b"<html>", "text/html"), answering(302, Location="/x"))
    put(b"1", b"2")
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert bodies(receiver) == [b"1"] * 5 + [b"2"]
    assert len({request.id for request in receiver.received}) == 2
    assert delivery.delays == [1, 2, 4, 8]
    assert delivery.failures == 0


def test_delays_begin_anew_after_a_success_and_do_not_exceed_a_minute(
    deliver, put, spool, receiver, answering, wait_for
):
    receiver.script(*[answering(500)] * 9, "ok", answering(500))
    put(b"1", b"2")
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert delivery.delays == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1]


@pytest.mark.parametrize(
    ("retry_after", "shown"), [("7", "7.0"), ("100000", "3600.0"), ("soon", "0.0"), ("-1", "0.0"), (None, "0.0")]
)
def test_retry_after_is_a_floor_up_to_an_hour(
    deliver, put, spool, receiver, answering, said, wait_for, retry_after, shown
):
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    receiver.script(answering(503, **headers))
    put(b"1")
    delivery = deliver()
    wait_for(said, "the failure")
    assert f"attempt 2 in {shown} s" in said()[0]
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert len(receiver.received) == 2


def test_a_rejected_request_is_set_aside_and_the_next_ones_flow(
    deliver, put, spool, receiver, answering, said, wait_for
):
    receiver.script("ok", answering(400))
    put(b"1", b"2", b"3")
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert bodies(receiver) == [b"1", b"2", b"3"]
    assert spool.quarantined_items() == 2
    assert (delivery.failures, delivery.delays) == (0, [])
    assert ["set aside" in message and "400" in message for message in said()] == [True]


def test_a_refused_token_parks_until_someone_says_otherwise(deliver, put, spool, receiver, answering, said, wait_for):
    receiver.script(answering(401))
    put(b"1")
    delivery = deliver()
    wait_for(said, "the failure")
    assert "TENSORMETER_TOKEN" in delivery.error
    assert "in 60.0 s" in said()[0]
    assert delivery.failures == 1
    assert spool.pending() == 1
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert [request.headers["authorization"] for request in receiver.received] == ["Bearer secret"] * 2
    assert "secret" not in "".join(said())


def test_partial_success_is_surfaced_and_not_sent_again(deliver, put, spool, receiver, said, wait_for):
    receiver.script("partial")
    put(b"1")
    deliver()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert len(receiver.received) == 1
    assert ["refused 3 items" in message and "three were bad" in message for message in said()] == [True]


def test_a_slow_answer_ends_at_the_deadline(deliver, put, spool, receiver, said, wait_for):
    receiver.script("drip")
    put(b"1")
    deliver(export_timeout=0.3)
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert "did not end in time" in said()[0]
    assert len(receiver.accepted()) == 1


def test_a_receiver_that_comes_back(deliver, put, spool, receiver, wait_for):
    receiver.stop()
    put(b"1", b"2")
    delivery = deliver()
    wait_for(lambda: delivery.failures >= 3, "three failures")
    assert "refused" in delivery.error
    receiver.start()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert [request.accepted for request in receiver.received] == [True, True]


def test_one_bad_destination_never_holds_another(deliver, put, spool, receiver, answering, wait_for, monkeypatch):
    class Raising(ExperimentExporter):
        def export(self, request):
            raise ZeroDivisionError("a bug")

    class Unmakeable(ExperimentExporter):
        def __init__(self, config):
            raise ValueError("no such thing")

    exporters = {"raising": Raising, "unmakeable": Unmakeable, "down": ExperimentExporter, "good": ExperimentExporter}
    monkeypatch.setattr(delivery_module, "load_exporter", exporters.__getitem__)
    put(*[b"%d" % number for number in range(20)], destinations=tuple(exporters))
    down = deliver("down", endpoint="http://127.0.0.1:1")
    raising, unmakeable = deliver("raising"), deliver("unmakeable")
    wait_for(lambda: all(d.failures for d in (down, raising, unmakeable)), "the bad ones fail")
    deliver("good")
    wait_for(lambda: spool.next("good") is None, "the good one has everything")
    assert bodies(receiver) == [b"%d" % number for number in range(20)]
    assert spool.pending() == 60
    assert "ZeroDivisionError: a bug" in raising.error
    assert "ValueError: no such thing" in unmakeable.error
    assert spool.next("down")[1].body == spool.next("raising")[1].body


def test_a_stopped_delivery_leaves_the_rest_in_the_spool(deliver, put, spool, receiver, answering, wait_for):
    receiver.script(answering(503, Retry_After="3000"))
    put(b"1")
    delivery = deliver()
    wait_for(lambda: delivery.failures, "a failure")
    delivery.stop(30)
    assert not delivery._thread.is_alive()
    assert spool.pending() == 1
    deliver()
    wait_for(lambda: spool.pending() == 0, "the next one delivers it")


def test_exporters_are_found_by_name():
    assert load_exporter("experiment") is ExperimentExporter
    with pytest.raises(SettingsError, match=r"expected some of .*experiment.*, got 'nobody'"):
        load_exporter("nobody")
    assert Accepted() == Accepted(0, "")
