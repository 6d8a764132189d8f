"""OTLP by HTTP: what is sent, and what each answer means. Real sockets."""

import gzip

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from support.otlp_receivers import PARTIAL, exporting
from support.ports import reserve_port
from tensormeter.exporter import Accepted, Rejected, Retry, TooLarge, Unauthorized

pytestmark = pytest.mark.usefixtures("only_our_variables")


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_http_sends_the_bytes_of_the_spool(make, config, http, monkeypatch, compression):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=k")
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    with exporting(config(endpoint=f"http://127.0.0.1:{http.port}", compression=compression)) as exporter:
        assert exporter.export(request) == Accepted()
        assert exporter.export(make.logs(2, make.start({}))) == Accepted()
    (path, headers, body), (logs_path, _, _) = http.received
    assert (path, logs_path) == ("/v1/metrics", "/v1/logs")
    assert headers["api-key"] == "k"
    assert headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    assert (gzip.decompress(body) if compression == "gzip" else body) == gzip.decompress(request.body)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, {}, PARTIAL), Accepted(2, "two were bad")),
        ((429, {"Retry-After": "7"}, b""), Retry),
        ((503, {}, b""), Retry),
        ((500, {}, b""), Rejected),
        ((400, {}, b""), Rejected),
        ((415, {}, b""), Rejected),
        ((404, {}, b""), Retry),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), Retry),
        ((401, {}, b""), Unauthorized),
        ((413, {}, b""), TooLarge),
        ((200, {"Content-Type": "text/html"}, b"<html>"), Retry),
        ((200, {"Content-Type": None}, b" <!DOCTYPE html><html>"), Retry),
        ((200, {"Content-Type": "text/plain"}, b"<html>"), Retry),
        ((200, {"Content-Type": "application/x-protobuf"}, b"\xff"), Retry),
        ((200, {"Content-Type": "text/plain"}, b"\xef\xbb\xbf<html>"), Retry),
        ((200, {"Content-Type": "application/json"}, b"{"), Accepted()),
        ((200, {"Content-Type": "application/json"}, b"ok"), Accepted()),
        ((200, {"Content-Type": "application/x-protobuf"}, b"ok"), Accepted()),
        ((200, {"Content-Type": "application/x-protobuf"}, b"{}"), Accepted()),
        ((408, {}, b""), Retry),
        ((520, {}, b""), Retry),
        ((501, {}, b""), Retry),
        ((200, {"Content-Type": None}, b""), Accepted()),
        ((200, {"Content-Type": "text/html"}, b""), Accepted()),
        ((202, {"Content-Type": None}, b""), Accepted()),
        ((204, {"Content-Type": None}, b""), Accepted()),
        ((200, {"Content-Type": "text/plain"}, b"ok"), Accepted()),
        ((200, {"Content-Type": "application/json"}, b"{}"), Accepted()),
        ((200, {"Content-Type": "application/json"}, b"null"), Accepted()),
        (
            (
                202,
                {"Content-Type": "application/json; charset=utf-8"},
                b'{"partialSuccess": {"rejectedDataPoints": "1", "errorMessage": "one\\nwas bad"}}',
            ),
            Accepted(1, "one was bad"),
        ),
        ((200, {"Content-Type": "application/json"}, b'{"partialSuccess": {"rejectedDataPoints": 1e400}}'), Accepted()),
        ((200, {"Content-Type": "application/json"}, b'{"partialSuccess": {"rejectedDataPoints": -5}}'), Accepted()),
    ],
)
def test_each_http_status_is_an_outcome(make, config, http, answer, expected):
    http.answers.append(answer)
    with exporting(config(endpoint=f"http://127.0.0.1:{http.port}")) as exporter:
        outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}})))
    assert outcome == expected if isinstance(expected, Accepted) else isinstance(outcome, expected)
    if answer[0] == 429:
        assert outcome.after == 7
    if expected is Rejected:
        assert outcome.divide is (answer[0] != 415), "only what can be about something in the request"
    assert len(http.received) == 1  # a redirect is not followed


def test_a_receiver_that_is_away_is_tried_again(make, config):
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    for protocol in ("http/protobuf", "grpc"):
        with exporting(config(endpoint=f"http://127.0.0.1:{reserve_port()}", protocol=protocol)) as exporter:
            assert isinstance(exporter.export(request), Retry)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("text/plain", b"invalid temporality\nfor 'weights'", "invalid temporality for 'weights'"),
        ("application/json", b'{"code": 3, "message": "too old"}', "too old"),
        ("application/x-protobuf", Status(code=3, message="no such tenant").SerializeToString(), "no such tenant"),
        ("text/html", b"<h1>nginx</h1>", ""),
        ("application/json", b"[", ""),
        ("text/plain", b"x" * 9999, "x" * 300 + "..."),
    ],
)
def test_the_reason_of_the_receiver_is_passed_on(make, config, http, kind, body, words):
    http.answers.append((400, {"Content-Type": kind}, body))
    with exporting(config(endpoint=f"http://127.0.0.1:{http.port}")) as exporter:
        outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}})))
    expected = f"http://127.0.0.1:{http.port}/v1/metrics answered 400 Bad Request"
    assert outcome.reason == (f"{expected}: {words}" if words else expected)


def test_the_message_has_a_step_next_to_the_value(make):
    """The servers above compare with a message that has a step next to the value."""
    body = gzip.decompress(make.logged(1, make.rows({1: {"loss": 1.0}})).body)
    (scope,) = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics
    assert [metric.name for metric in scope.metrics] == ["tensormeter.step", "loss"]
