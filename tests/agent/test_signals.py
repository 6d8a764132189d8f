"""Metrics and log records of one destination: in order while both arrive, and independent as soon as one does not."""

import gzip
import logging
import threading

import pytest

import tensormeter.agent.delivery.delivery as delivery_module
from tensormeter.agent.delivery.delivery import deliveries
from tensormeter.agent.spool.request import Encoded
from tensormeter.errors import SettingsError
from tensormeter.settings import Settings


@pytest.fixture
def put(spool):
    def put(signal, *bodies, to=("experiment",)):
        requests = [Encoded(signal, gzip.compress(body), 1) for body in bodies]
        spool.put(requests, to, "p", {}, started=True, ended=False)

    return put


@pytest.fixture
def deliver(tmp_path, receiver, monkeypatch):
    """Starts what delivers to the default destination; attempts that failed are made again after 10 ms."""
    started = []
    monkeypatch.setattr(delivery_module, "exponential_delays", lambda *_: (0.01 for _ in iter(int, 1)))

    def start(**settings):
        resolved = Settings(**{"endpoint": receiver.url, "exporters": ("experiment",), **settings})
        signal_deliveries = deliveries(resolved.exporters, tmp_path / "spool.sqlite", resolved, lambda: None)
        started.extend(signal_deliveries)
        for delivery in signal_deliveries:
            delivery.start()
        return {delivery.signals[0]: delivery for delivery in signal_deliveries}

    yield start
    for delivery in started:
        delivery.stop(30)


def received(receiver, accepted=True):
    return [gzip.decompress(request.body) for request in receiver.received if request.accepted or not accepted]


def test_signals_arrive_in_the_order_in_which_they_were_recorded(deliver, put, spool, receiver, wait_for):
    for number in range(20):
        put("logs", b"log %d" % number)
        put("metrics", *(b"metric %d.%d" % (number, part) for part in range(number % 4)))
    expected = [
        body
        for number in range(20)
        for body in (b"log %d" % number, *(b"metric %d.%d" % (number, part) for part in range(number % 4)))
    ]
    deliver()
    wait_for(lambda: spool.pending() == 0, "everything arrives")
    assert received(receiver) == expected


@pytest.mark.parametrize(("refused", "taken"), [("logs", "metrics"), ("metrics", "logs")])
def test_a_signal_that_is_refused_does_not_hold_up_the_other(
    deliver, put, spool, receiver, answering, wait_for, refused, taken
):
    receiver.routes[f"/v1/{refused}"] = answering(503)
    put(refused, b"first")
    put(taken, b"1", b"2", b"3")
    deliveries_by_signal = deliver()
    wait_for(lambda: received(receiver) == [b"1", b"2", b"3"], "the other signal arrives")
    put(taken, b"4")
    deliveries_by_signal[taken].arrived()
    wait_for(lambda: received(receiver)[-1] == b"4", "so does what comes later")
    wait_for(lambda: deliveries_by_signal[refused].stalled, "the one that is refused is given up for now")
    assert f"/v1/{refused}" in deliveries_by_signal[refused].error
    assert not deliveries_by_signal[taken].error
    receiver.routes.clear()
    wait_for(lambda: spool.pending() == 0, "the other one arrives when it is taken")


def test_an_answer_that_does_not_come_holds_up_its_own_signal(deliver, put, receiver, wait_for):
    release = threading.Event()

    def hang(handler):
        release.wait(60)
        handler.close_connection = True

    receiver.routes["/v1/logs"] = hang
    put("logs", b"first")
    put("metrics", b"1", b"2")
    try:
        deliver(export_timeout=60)
        wait_for(lambda: received(receiver) == [b"1", b"2"], "metrics arrive while the log record is under way")
    finally:
        release.set()


def test_a_receiver_that_comes_back_gets_both(deliver, put, spool, receiver, wait_for):
    receiver.stop()
    put("logs", b"a")
    put("metrics", b"b")
    deliveries_by_signal = deliver()
    wait_for(lambda: all(delivery.failures for delivery in deliveries_by_signal.values()), "both signals fail")
    receiver.start()
    wait_for(lambda: spool.pending() == 0, "both arrive")


def test_signals_arrive_in_order_once_the_receiver_is_back(deliver, put, spool, receiver, answering, wait_for):
    """A run must not end at the receiver before its values are there, only because their next attempt is far away."""
    receiver.routes |= {"/v1/metrics": answering(503, Retry_After="3000"), "/v1/logs": answering(503)}
    values = [b"%d" % number for number in range(20)]
    put("logs", b"begin")
    put("metrics", *values)
    put("logs", b"end")
    deliveries_by_signal = deliver()
    wait_for(lambda: all(delivery.failures for delivery in deliveries_by_signal.values()), "both signals fail")
    receiver.routes.clear()
    wait_for(lambda: spool.pending() == 0, "everything arrives")
    assert received(receiver) == [b"begin", *values, b"end"]


def test_what_happens_during_an_attempt_that_fails_does_not_shorten_the_delay(
    deliver, put, receiver, answering, wait_for
):
    release = threading.Event()
    later = answering(503, Retry_After="3000")

    def hold(handler):
        release.wait(60)
        later(handler)

    receiver.routes |= {"/v1/metrics": hold, "/v1/logs": answering(503)}
    put("metrics", b"1")
    put("logs", b"2")
    deliveries_by_signal = deliver(export_timeout=60)
    wait_for(lambda: deliveries_by_signal["logs"].failures > 3, "the other signal fails meanwhile")
    release.set()
    wait_for(lambda: deliveries_by_signal["metrics"].failures, "the attempt fails")
    failures = deliveries_by_signal["logs"].failures
    wait_for(lambda: deliveries_by_signal["logs"].failures > failures + 10, "time passes")
    assert deliveries_by_signal["metrics"].failures == 1


def test_it_is_known_when_there_is_nothing_to_do(deliver, put, spool, wait_for):
    deliveries_by_signal = deliver()
    wait_for(lambda: all(delivery.idle for delivery in deliveries_by_signal.values()), "there is nothing")
    put("metrics", b"1")
    for signal_delivery in deliveries_by_signal.values():
        signal_delivery.arrived()
        assert not signal_delivery.idle
    wait_for(
        lambda: spool.pending() == 0 and all(delivery.idle for delivery in deliveries_by_signal.values()),
        "there is nothing any more",
    )


def test_what_was_given_up_holds_up_nothing_that_comes_later(deliver, put, spool, receiver, answering, wait_for):
    receiver.routes["/v1/logs"] = answering(503)
    put("logs", b"picture")
    deliveries_by_signal = deliver()
    wait_for(lambda: deliveries_by_signal["logs"].failures, "it is refused")
    spool.discard(1, "spool_full_media")
    wait_for(lambda: deliveries_by_signal["logs"].idle, "nothing waits any more")
    assert not deliveries_by_signal["logs"].failures
    assert not deliveries_by_signal["logs"].error
    receiver.routes.clear()
    put("logs", b"end")
    deliveries_by_signal["logs"].arrived()
    wait_for(lambda: received(receiver) == [b"end"], "the later event arrives")


def test_the_limit_on_bytes_is_that_of_the_destination(deliver):
    metrics, logs = deliver(max_upload_bytes_per_second=1000).values()
    assert metrics._rate is logs._rate


def test_destinations_that_need_the_order_have_one_queue(tmp_path):
    settings = Settings(exporters=("jsonl", "otlp"))
    signal_deliveries = deliveries(settings.exporters, tmp_path / "spool.sqlite", settings, lambda: None)
    assert [(delivery.destination, delivery.signals) for delivery in signal_deliveries] == [
        ("jsonl", ("metrics", "logs")),
        ("otlp", ("metrics",)),
        ("otlp", ("logs",)),
    ]


def test_a_signal_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", " None ")
    settings = Settings(exporters=("experiment", "otlp", "otlp:b"), exporter_options={"otlp:b.signals": "Logs"})
    assert settings.takers("metrics", settings.exporters) == ("experiment", "otlp")
    assert settings.takers("logs", settings.exporters) == ("experiment", "otlp:b")
    signal_deliveries = deliveries(settings.exporters, tmp_path / "spool.sqlite", settings, lambda: None)
    assert [delivery.signals for delivery in signal_deliveries if delivery.destination != "experiment"] == [
        ("metrics",),
        ("logs",),
    ]


@pytest.mark.parametrize("value", ["", "traces", "metrics,traces"])
def test_signals_that_do_not_exist_are_refused(value):
    with pytest.raises(SettingsError, match=r"otlp\.signals: expected metrics, logs"):
        Settings(exporters=("otlp",), exporter_options={"otlp.signals": value})


def test_other_destinations_need_both_signals(monkeypatch):
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert Settings(exporters=("jsonl",)).takers("metrics", ("jsonl",)) == ("jsonl",)
    with pytest.raises(SettingsError, match="only otlp destinations can exclude a signal"):
        Settings(exporters=("jsonl",), exporter_options={"jsonl.signals": "metrics"})


def test_requests_for_no_destination_are_not_kept(put, spool):
    put("logs", b"1", to=())
    put("logs", b"2", to=("a",))
    assert spool.last_sequence() == 1


def test_what_waits_of_a_signal_can_be_withdrawn(put, spool):
    put("logs", b"1", b"2", to=("a", "b"))
    put("metrics", b"3", to=("a",))
    assert spool.withdraw("a", "logs") == 2
    assert [(row[0], row[1], row[4]) for row in spool.contents()] == [("a", "metrics", 1), ("b", "logs", 2)]
    assert spool.withdraw("b", "logs") == 2
    assert spool.pending() == 1


def test_beginning_says_which_signals_are_left_out(tmp_path, monkeypatch, caplog):
    import tensormeter

    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    settings = {"exporters": ("otlp",), "agent": "off", "directory": tmp_path, "buffer_directory": tmp_path}
    with caplog.at_level(logging.WARNING, "tensormeter"):
        tensormeter.init(settings=settings).finish()
    warnings = [record.getMessage() for record in caplog.records if "OTEL_LOGS_EXPORTER" in record.getMessage()]
    assert warnings == ["otlp: not sending logs, because OTEL_LOGS_EXPORTER=none"]
