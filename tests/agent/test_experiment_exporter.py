"""The experiment exporter against a real server that misbehaves: what each answer means."""

import gzip
import os
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

import tensormeter
from tensormeter import Settings
from tensormeter.exporter import Accepted, ExporterConfig, Rejected, Request, Retry, TooLarge, Unauthorized
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.content_codings import PLANES
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.receivers.request_body import decompress
from tensormeter_exporters.experiment import ExperimentExporter
from tensormeter_exporters.otlp.exporter import OtlpExporter

REQUEST = Request("spool-1", "metrics", gzip.compress(b""), 7)


@pytest.fixture
def new_exporter():
    exporters = []

    def create(url, token=None, timeout=10.0, kind=ExperimentExporter):
        exporters.append(kind(ExporterConfig(endpoint=url, token=token, timeout=timeout)))
        return exporters[-1]

    yield create
    for exporter in exporters:
        exporter.shutdown()


@pytest.fixture
def exporter(new_exporter, receiver):
    return new_exporter(receiver.url + "/", token="secret")


def test_an_accepted_request(exporter, receiver):
    assert exporter.export(REQUEST) == Accepted()
    assert exporter.export(Request("spool-2", "logs", REQUEST.body, 1)) == Accepted()
    assert exporter.export(Request("spool-3", "metrics", REQUEST.body, 1)) == Accepted()
    first, second, third = receiver.received
    assert (first.path, second.path) == ("/v1/metrics", "/v1/logs")
    assert first.body == REQUEST.body
    assert first.headers["content-encoding"] == "gzip"
    assert first.headers["content-type"] == "application/x-protobuf"
    assert first.headers["authorization"] == "Bearer secret"
    assert (first.id, second.id, third.id) == ("spool-1", "spool-2", "spool-3")
    assert receiver.connections == 2, "kept open, one for each signal"


def test_partial_success_is_surfaced(exporter, receiver):
    receiver.script("partial")
    assert exporter.export(REQUEST) == Accepted(3, "three were bad")


def test_a_partial_success_that_begins_like_a_page_is_accepted(exporter, receiver, answering):
    """A message of 60 bytes begins with a line break and "<"."""
    message = "x" * 56
    response = ExportMetricsServiceResponse(
        partial_success=ExportMetricsPartialSuccess(rejected_data_points=3, error_message=message)
    )
    body = response.SerializeToString()
    assert body.strip().startswith(b"<")
    receiver.script(answering(200, body, "application/x-protobuf"))
    assert exporter.export(REQUEST) == Accepted(3, message)


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        *((status, Rejected, f"answered {status}") for status in (400, 409, 415, 422)),
        *((status, Retry, f"answered {status}") for status in (404, 408, 429, 500, 502, 503, 504)),
        *((status, Unauthorized, "TENSORMETER_TOKEN") for status in (401, 403)),
        (413, TooLarge, "answered 413"),
    ],
)
def test_the_status_of_an_answer_decides_the_outcome(exporter, receiver, answering, status, kind, reason):
    receiver.script(answering(status, b"why", "text/plain"))
    outcome = exporter.export(REQUEST)
    assert isinstance(outcome, kind)
    assert reason in outcome.reason
    assert "secret" not in outcome.reason
    assert kind is not Retry or outcome.after is None
    assert exporter.export(REQUEST) == Accepted()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("17", 17.0),
        ("-5", 0.0),
        ("soon", None),
        ("", None),
        ("1.5", None),
        ("9" * 400, None),
        ("9" * 5000, None),
        ("Wed, 99 Foo 2020 00:00:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after(exporter, receiver, answering, value, seconds):
    receiver.script(answering(503, Retry_After=value))
    outcome = exporter.export(REQUEST)
    assert isinstance(outcome, Retry)
    assert outcome.after == seconds


def test_retry_after_a_date(exporter, receiver, answering):
    at = datetime.now(UTC) + timedelta(seconds=1000)
    receiver.script(answering(503, Retry_After=format_datetime(at, usegmt=True)))
    outcome = exporter.export(REQUEST)
    assert at.timestamp() - time.time() - 1 <= outcome.after <= 1000


def test_a_login_page_is_not_an_acceptance(exporter, receiver, answering):
    receiver.script(answering(200, b"<html>", "text/html; charset=utf-8"), answering(200, b"<html>\xff"))
    first, second = (exporter.export(REQUEST) for _ in range(2))
    assert "text/html" in first.reason
    assert "instead of OTLP" in second.reason
    assert all(isinstance(outcome, Retry) for outcome in (first, second))
    assert receiver.accepted().keys() <= {"spool-1"}


def test_redirects_are_not_followed(exporter, receiver, another_receiver, answering):
    for status in (301, 302, 307, 308):
        receiver.script(answering(status, Location=another_receiver.url + "/v1/metrics"))
        assert isinstance(exporter.export(REQUEST), Retry)
    assert len(receiver.received) == 4
    assert another_receiver.received == []


def test_a_connection_that_is_reset(exporter, receiver, wait_for):
    receiver.script("reset")
    outcome = exporter.export(REQUEST)
    assert isinstance(outcome, Retry)
    assert receiver.url in outcome.reason
    assert "0x" not in outcome.reason
    assert exporter.export(REQUEST) == Accepted()


@pytest.mark.parametrize("how", ["drip", "drip_headers"])
@pytest.mark.parametrize("kind", [ExperimentExporter, OtlpExporter])
def test_an_answer_that_does_not_end(new_exporter, receiver, monkeypatch, kind, how):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    exporter = new_exporter(receiver.url, timeout=0.5, kind=kind)
    receiver.script(how)
    outcome = exporter.export(REQUEST)
    assert outcome == Retry(f"{receiver.url}/v1/metrics: the response did not arrive in time")
    assert exporter.export(REQUEST) == Accepted()  # on another connection


@pytest.mark.parametrize("kind", [ExperimentExporter, OtlpExporter])
def test_an_answer_that_is_too_long(new_exporter, receiver, answering, monkeypatch, kind):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    exporter = new_exporter(receiver.url, kind=kind)
    receiver.script(answering(200, b"x" * 5_000_000))
    outcome = exporter.export(REQUEST)
    assert isinstance(outcome, Retry)
    assert "longer than" in outcome.reason
    assert exporter.export(REQUEST) == Accepted()


def test_a_refusal_with_a_long_page_is_a_refusal(new_exporter, receiver, answering, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    exporter = new_exporter(receiver.url, kind=OtlpExporter)
    for size in (100_000, 5_000_000):
        receiver.script(answering(400, b"<" + b"x" * size))
        assert isinstance(exporter.export(REQUEST), Rejected)
    assert exporter.export(REQUEST) == Accepted()


def test_no_server_listens(new_exporter, receiver):
    exporter = new_exporter(receiver.url)
    receiver.stop()
    outcome = exporter.export(REQUEST)
    assert isinstance(outcome, Retry)
    assert "refused" in outcome.reason
    receiver.start()
    assert exporter.export(REQUEST) == Accepted()


def test_a_token_is_never_shown():
    config = ExporterConfig(endpoint="http://x", token="secret", timeout=1)
    assert "secret" not in repr(config)
    assert "***" in repr(config)


@pytest.fixture
def otel(monkeypatch):
    """Sets variables of OTLP exporters, and nothing else is set."""
    for name in os.environ:
        if name.startswith("OTEL_") or name == "TENSORMETER_ENDPOINT":
            monkeypatch.delenv(name)

    def set_variables(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)

    return set_variables


LOGS = Request("spool-2", "logs", REQUEST.body, 1)


def test_what_belongs_to_opentelemetrys_endpoint_goes_along_with_it(otel, new_exporter, receiver, another_receiver):
    otel(
        ENDPOINT=receiver.url + "/",
        HEADERS="x-api-key=k%20y,x-tenant=a",
        COMPRESSION="none",
        LOGS_ENDPOINT=another_receiver.url + "/as/it/is",
        LOGS_HEADERS="only=logs",
        LOGS_COMPRESSION="gzip",
    )
    exporter = new_exporter(receiver.url)
    assert exporter.export(REQUEST) == Accepted()
    assert exporter.export(LOGS) == Accepted()
    ((metrics,), (logs,)) = receiver.received, another_receiver.received
    assert (metrics.path, logs.path) == ("/v1/metrics", "/as/it/is")
    assert (metrics.headers["x-api-key"], metrics.headers["x-tenant"], "only" in metrics.headers) == ("k y", "a", False)
    assert (logs.headers["only"], "x-api-key" in logs.headers) == ("logs", False)
    assert (metrics.body, logs.body) == (b"", REQUEST.body)
    assert ("content-encoding" in metrics.headers, logs.headers["content-encoding"]) == (False, "gzip")
    assert (metrics.id, logs.id) == ("spool-1", "spool-2")


def test_the_token_goes_to_the_endpoint_only(otel, new_exporter, receiver, another_receiver):
    otel(
        ENDPOINT=receiver.url, HEADERS="authorization=Bearer%20theirs", LOGS_ENDPOINT=another_receiver.url + "/v1/logs"
    )
    exporter = new_exporter(receiver.url, token="ours")
    exporter.export(REQUEST)
    exporter.export(LOGS)
    assert receiver.received[0].headers["authorization"] == "Bearer ours"
    assert another_receiver.received[0].headers["authorization"] == "Bearer theirs"


@pytest.mark.parametrize("where", ["argument", "variable", "none"])
def test_opentelemetrys_headers_go_to_no_other_endpoint(
    otel, new_exporter, receiver, another_receiver, monkeypatch, where
):
    headers = {"HEADERS": "x-api-key=hunter2", "METRICS_ENDPOINT": another_receiver.url + "/v1/metrics"}
    if where == "argument":
        otel(ENDPOINT=another_receiver.url, **headers)
    elif where == "variable":
        otel(ENDPOINT=receiver.url, **headers)
        monkeypatch.setenv("TENSORMETER_ENDPOINT", receiver.url)
    else:
        otel(**headers)
    exporter = new_exporter(Settings(endpoint=receiver.url).endpoint if where != "none" else receiver.url)
    assert exporter.export(REQUEST) == Accepted()
    (received,) = receiver.received
    assert "x-api-key" not in received.headers
    assert not another_receiver.received


def test_a_run_keeps_no_header_and_sends_them_with_every_request(otel, receiver, tmp_path, monkeypatch):
    otel(ENDPOINT=receiver.url.replace("//", "//me:hunter3@"), HEADERS="x-api-key=hunter2")
    settings = {"directory": tmp_path, "agent": "process", "finish_timeout": 60.0}
    with tensormeter.init("p", id="r", settings=settings) as run:
        run.log({"loss": 1.0}, 0)
        kept = [file.read_bytes() for file in tmp_path.glob("**/*") if file.is_file()]
        assert any(b'"endpoint"' in data for data in kept)
    assert receiver.received
    assert {request.headers["x-api-key"] for request in receiver.received} == {"hunter2"}
    assert {request.headers["authorization"] for request in receiver.received} == {"Basic bWU6aHVudGVyMw=="}
    kept += [file.read_bytes() for file in tmp_path.glob("**/*") if file.is_file()]
    assert not [data for data in kept if b"hunter" in data]
    assert "hunter" not in repr(run.settings)


def points_request(identity, gauges=3, points=100):
    """A request with random values."""
    chance = np.random.default_rng(gauges)
    times = np.arange(1, points + 1, dtype=np.uint64)
    series = [Gauge(f"metric/{number}", times, chance.random(points)) for number in range(gauges)]
    body = gzip.compress(encode_metrics([Batch({}, series)]), 1)
    return Request(identity, "metrics", body, gauges * points)


def decoded(received):
    """The body of a received request without its content coding."""
    return decompress(received.body, received.headers["content-encoding"], 1 << 20)


@pytest.mark.parametrize(
    ("accepts", "coding", "wide_coding"),
    [
        (f"{PLANES}, zstd, gzip", PLANES, "zstd"),
        (f"gzip, ZSTD;q=0.5 , {PLANES}", PLANES, "zstd"),
        ("zstd", "zstd", "zstd"),
        (PLANES, PLANES, "gzip"),
        (f"gzip, {PLANES};q=0, zstd; q=0", "gzip", "gzip"),
        ("br, deflate, gzip", "gzip", "gzip"),
        ("", "gzip", "gzip"),
    ],
)
def test_bodies_are_in_the_best_coding_that_the_receiver_lists(
    exporter, receiver, answering, accepts, coding, wide_coding
):
    receiver.script(*[answering(200, Accept_Encoding=accepts)] * 3)
    requests = [points_request("1"), points_request("2"), points_request("3", gauges=300, points=1)]
    assert [exporter.export(request) for request in requests] == [Accepted()] * 3
    codings = [received.headers["content-encoding"] for received in receiver.received]
    assert codings == ["gzip", coding, wide_coding]
    assert [decoded(received) for received in receiver.received] == [gzip.decompress(item.body) for item in requests]
    receiver.script(answering(200), answering(200))  # another server, which lists nothing
    exporter.export(points_request("4"))
    exporter.export(points_request("5"))
    assert receiver.received[-1].headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("status", [400, 406, 415, 422, 501])
def test_a_coding_that_is_refused_is_not_used_again(exporter, receiver, answering, status):
    """A proxy, or an older server, is behind the same address."""
    listing = answering(200, Accept_Encoding=f"{PLANES}, zstd")
    receiver.script(listing, answering(status, b"no", "text/plain"), listing, listing)
    requests = [points_request(str(number)) for number in range(3)]
    assert [exporter.export(request) for request in requests] == [Accepted()] * 3
    assert [received.headers["content-encoding"] for received in receiver.received] == ["gzip", PLANES, "gzip", "gzip"]
    assert [received.id for received in receiver.received] == ["0", "1", "1", "2"]
    assert receiver.received[2].body == requests[1].body


def test_a_request_that_is_refused_in_every_coding_is_rejected(exporter, receiver, answering):
    listing, refusal = answering(200, Accept_Encoding="zstd"), answering(400, b"no", "text/plain")
    receiver.script(listing, refusal, refusal, listing)
    assert exporter.export(points_request("0")) == Accepted()
    assert isinstance(exporter.export(points_request("1")), Rejected)
    assert exporter.export(points_request("2")) == Accepted()
    assert [received.headers["content-encoding"] for received in receiver.received] == ["gzip", "zstd", "gzip", "zstd"]


def test_a_damaged_body_is_rejected_in_another_coding(exporter, receiver, answering):
    receiver.script(answering(200, Accept_Encoding="zstd"))
    assert exporter.export(REQUEST) == Accepted()
    assert isinstance(exporter.export(Request("2", "metrics", b"nope", 1)), Rejected)
