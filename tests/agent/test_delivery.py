"""Delivery from a real spool to a real server that fails: order, backoff and quarantine. No destination waits for another."""

import gzip
import logging
import os
import time
from collections import Counter

import numpy as np
import pytest

import tensormeter.agent.delivery.delivery as delivery_module
from tensormeter.agent.spool.request import Encoded
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, load_exporter
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.encode import encode_metrics
from tensormeter_exporters.experiment import ExperimentExporter


@pytest.fixture
def put(spool):
    """Puts requests with these bodies into the spool."""

    def put(*bodies, destinations=("experiment",)):
        requests = [Encoded("metrics", gzip.compress(body), 2) for body in bodies]
        spool.put(requests, destinations, "p", {}, started=True, ended=False)

    return put


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, "tensormeter.agent")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "tensormeter.agent"]


def bodies(receiver):
    return [gzip.decompress(request.body) for request in receiver.received]


def test_requests_arrive_in_order(deliver, put, spool, receiver, wait_for):
    put(b"1", b"2", b"3")
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    put(b"4")
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "the later request is delivered")
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


def test_delays_begin_again_after_a_success_and_do_not_exceed_a_minute(
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
    deliver, put, spool, receiver, answering, messages, wait_for, retry_after, shown
):
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    receiver.script(answering(503, **headers))
    put(b"1")
    delivery = deliver()
    wait_for(messages, "the failure")
    assert f"attempt 2 in {shown} s" in messages()[0]
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert len(receiver.received) == 2


def test_a_rejected_request_is_set_aside_and_the_next_ones_flow(
    deliver, put, spool, receiver, answering, messages, wait_for
):
    receiver.script("ok", answering(400))
    put(b"1", b"2", b"3")
    delivery = deliver()
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert bodies(receiver) == [b"1", b"2", b"3"]
    assert spool.quarantined_items() == 2
    assert (delivery.failures, delivery.delays) == (0, [])
    assert ["quarantined" in message and "400" in message for message in messages()] == [True]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_parks_until_someone_says_otherwise(
    deliver, put, spool, receiver, answering, messages, wait_for, status
):
    receiver.script(*[answering(status)] * 3)
    put(b"1")
    delivery = deliver()
    wait_for(lambda: delivery.parked, "the destination is parked")
    assert "TENSORMETER_TOKEN" in delivery.error
    assert delivery.stalled

    def woken():
        delivery.wake()
        return spool.pending() == 0

    wait_for(woken, "the request is delivered")
    assert [request.headers["authorization"] for request in receiver.received] == ["Bearer secret"] * 4
    assert not delivery.parked
    assert len(messages()) == 1, "one warning"
    assert "secret" not in "".join(messages())


def test_a_receiver_that_fails_after_it_refused_the_token_is_tried_again_soon(
    deliver, put, spool, receiver, answering, wait_for
):
    receiver.script(answering(401), answering(503))
    put(b"1")
    delivery = deliver(jitter=lambda _: 0.01)
    wait_for(lambda: delivery.parked, "the destination is parked")
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")


def test_a_parked_destination_resumes_with_a_new_token(deliver, put, spool, receiver, tmp_path, wait_for):
    receiver.token = "new"
    file = tmp_path / "token"
    file.write_text("old\n")
    put(b"1", b"2")
    delivery = deliver(token=None, token_file=file)
    wait_for(lambda: delivery.parked, "the destination is parked")
    file.write_text("new\n")
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert {request.headers["authorization"] for request in receiver.received if request.accepted} == {"Bearer new"}
    assert len(receiver.accepted()) == 2


def test_a_refused_token_of_a_file_is_said_to_wait_for_another(deliver, put, receiver, tmp_path, messages, wait_for):
    receiver.token = "new"
    file = tmp_path / "token"
    file.write_text("old")
    put(b"1")
    delivery = deliver(token=None, token_file=file)
    wait_for(lambda: delivery.parked, "the destination is parked")
    (message,) = messages()
    assert f"retrying when the token in {file} changes, or in 15 minutes" in message


def test_refused_headers_are_not_said_to_wait_for_a_token(
    deliver, put, receiver, another_receiver, spool, tmp_path, messages, wait_for
):
    """A running agent reads neither another token for this destination nor other headers."""
    another_receiver.token = "new"
    file = tmp_path / "token"
    file.write_text("old")
    put(b"1", destinations=("otlp",))
    settings = {"token": None, "token_file": file, "exporters": ("otlp",)}
    settings["exporter_options"] = {"otlp.endpoint": another_receiver.url}
    delivery = deliver("otlp", **settings)
    wait_for(lambda: delivery.parked, "the destination is parked")
    (message,) = messages()
    assert "set OTEL_EXPORTER_OTLP_HEADERS" in message
    assert "retrying in 15 minutes; environment variables of a running agent cannot change" in message
    assert "`tensormeter sync`" in message
    another_receiver.token = None
    delivery.wake()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert receiver.received == []


def metrics(points):
    """A request of rows with two values each."""
    times = np.arange(1, points + 1, dtype=np.uint64)
    gauges = [Gauge("a", times, times.astype(np.float64)), Gauge("tensormeter.step", times, times.astype(np.int64))]
    return encode_metrics([Batch({"service.instance.id": "p"}, gauges)])


def test_a_request_that_is_too_large_is_halved(deliver, put, spool, receiver, answering, wait_for):
    put(metrics(64), metrics(3))
    receiver.limit = 600
    receiver.script("reset", answering(413), "reset")
    deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert max(len(gzip.decompress(request.body)) for request in receiver.accepted().values()) <= 600
    values = Counter(value for (_, name, _, value), n in receiver.points().items() for _ in range(n) if name == "a")
    assert values == Counter({**dict.fromkeys(range(1, 4), 2), **dict.fromkeys(range(4, 65), 1)})
    # Rows stay together, and the same bytes come under the same id, however often.
    for batch in receiver.batches():
        assert len({tuple(gauge.times.tolist()) for gauge in batch.gauges}) == 1
    assert len({(request.id, request.body) for request in receiver.received}) == len({r.id for r in receiver.received})
    assert spool.quarantined_items() == 0


def test_another_agent_makes_the_same_halves(deliver, put, spool, receiver, answering, wait_for):
    put(metrics(64))
    receiver.limit = 1000
    receiver.script(answering(413), answering(413), *["ok"] * 2, *[answering(503)] * 1000)
    first = deliver()
    wait_for(lambda: first.failures, "half of it is delivered")
    first.stop(30)
    receiver.script(None)
    deliver()
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert sorted(value for (_, name, _, value) in receiver.points() if name == "a") == list(range(1, 65))
    assert set(receiver.points().values()) == {1}


def test_a_point_that_is_too_large_is_set_aside_and_its_neighbours_arrive(
    deliver, put, spool, receiver, messages, wait_for
):
    times = np.array([7], np.uint64)
    big = Gauge("big", times, times.astype(np.float64), attributes={"text": "x" * 10_000})
    put(encode_metrics([Batch({}, [Gauge("small", times, times.astype(np.float64)), big])]), b"")
    receiver.limit = 5000
    deliver()
    wait_for(lambda: spool.pending() == 0, "everything is dealt with")
    assert [gauge.name for batch in receiver.batches() for gauge in batch.gauges] == ["small"]
    assert spool.quarantined_items() == 1
    assert any("even for a single item" in message for message in messages())


def test_a_limit_on_bytes_a_second(deliver, put, spool, receiver, wait_for):
    put(*[os.urandom(2000) for _ in range(3)])
    begun = time.monotonic()
    deliver(max_upload_bytes_per_second=4000)
    wait_for(lambda: spool.pending() == 0, "everything is delivered")
    assert len(receiver.accepted()) == 3
    assert time.monotonic() - begun >= 2 * 2000 / 4000  # the first goes at once; a slow machine only adds to it


def test_partial_success_is_surfaced_and_not_sent_again(deliver, put, spool, receiver, messages, wait_for):
    receiver.script("partial")
    put(b"1")
    deliver()
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert len(receiver.received) == 1
    assert spool.losses() == {"refused": 2}, "no more than there were"
    assert ["refused 2 items" in message and "three were bad" in message for message in messages()] == [True]


def test_a_slow_answer_ends_at_the_deadline(deliver, put, spool, receiver, messages, wait_for):
    receiver.script("drip")
    put(b"1")
    deliver(export_timeout=0.3)
    wait_for(lambda: spool.pending() == 0, "the request is delivered")
    assert "did not arrive in time" in messages()[0]
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
    wait_for(lambda: all(d.failures for d in (down, unmakeable)), "the bad ones fail")
    wait_for(lambda: spool.next("raising") is None, "the item at which the exporter raises is quarantined")
    deliver("good")
    wait_for(lambda: spool.next("good") is None, "the good one has everything")
    assert bodies(receiver) == [b"%d" % number for number in range(20)]
    assert spool.pending() == 40
    assert {(destination, items) for destination, _, items in spool.rejections()} == {("raising", 40)}
    assert "ZeroDivisionError: a bug" in spool.rejections()[0][1]
    assert not raising.failures
    assert "ValueError: no such thing" in unmakeable.error
    assert spool.next("down")[1].body == spool.next("unmakeable")[1].body


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
    with pytest.raises(SettingsError, match=r"expected .*experiment.* or .*; got 'unknown'"):
        load_exporter("unknown")
    assert Accepted() == Accepted(0, "")
