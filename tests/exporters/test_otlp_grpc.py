"""OTLP by gRPC: what is sent, and what each answer means. Real servers."""

import gzip
import time

import grpc
import pytest
from google.protobuf.any_pb2 import Any as ProtobufAny
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from support.otlp_receivers import PARTIAL, exporting, speaking_http2
from support.processes import run_python
from tensormeter import Settings
from tensormeter.exporter import Accepted, ExporterConfig, Rejected, Retry, TooLarge, Unauthorized
from tensormeter_exporters.experiment import ExperimentExporter

pytestmark = pytest.mark.usefixtures("only_our_variables")


def test_grpc_sends_the_same_message(make, config, rpc, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=k")
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    rpc.answer = PARTIAL
    with exporting(config(endpoint=f"http://127.0.0.1:{rpc.port}", protocol="grpc")) as exporter:
        assert exporter.export(request) == Accepted(2, "two were bad")
        assert isinstance(exporter.export(make.logs(2, make.start({}))), Retry)  # it has no logs service
    ((body, metadata),) = rpc.received
    assert body == gzip.decompress(request.body)
    assert metadata["api-key"] == "k"


def test_the_default_destination_speaks_grpc_where_opentelemetrys_endpoint_does(make, rpc, monkeypatch):
    for name, value in {
        "ENDPOINT": f"127.0.0.1:{rpc.port}",
        "INSECURE": "true",
        "PROTOCOL": "Grpc",
        "HEADERS": "api-key=k",
        "LOGS_PROTOCOL": "http/protobuf",
    }.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    monkeypatch.delenv("TENSORMETER_ENDPOINT", raising=False)
    settings = Settings()
    assert settings.endpoint == f"http://127.0.0.1:{rpc.port}"
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    exporter = ExperimentExporter(ExporterConfig(endpoint=settings.endpoint, token="t", timeout=60.0))
    try:
        assert exporter.export(request) == Accepted()
    finally:
        exporter.shutdown()
    ((body, metadata),) = rpc.received
    assert body == gzip.decompress(request.body)
    assert (metadata["api-key"], metadata["authorization"]) == ("k", "Bearer t")


TRAINER = """
import tensormeter
with tensormeter.init("p", id="r") as run:
    for step in range(20):
        run.log({"loss": step / 2}, step)
"""


def test_a_grpc_receiver_of_metrics_alone_gets_them(rpc, tmp_path, clean_environment):
    environment = clean_environment | {
        "TENSORMETER_DIR": str(tmp_path),
        "TENSORMETER_BUFFER_DIR": str(tmp_path),
        "TENSORMETER_SAMPLE_INTERVAL": "0",
        "TENSORMETER_CONSOLE": "off",
        "TENSORMETER_EXPORTERS": "otlp",
        "TENSORMETER_LINGER_TIMEOUT": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{rpc.port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    done = run_python("-c", TRAINER, environment=environment, check=True)
    values = [
        point.as_double
        for body, _ in rpc.received
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "loss"
        for point in metric.gauge.data_points
    ]
    assert values == [step / 2 for step in range(20)]
    assert "otlp (logs): " in done.stderr
    assert "UNIMPLEMENTED" in done.stderr
    assert "OTEL_LOGS_EXPORTER=none" in done.stderr
    environment["OTEL_LOGS_EXPORTER"] = "none"
    deadline = time.monotonic() + 120
    while list((tmp_path / "runs").glob("r@*")):  # while its agent lingers, it is left to that
        assert time.monotonic() < deadline, "the log records that wait are withdrawn, and so nothing is left"
        run_python("-m", "tensormeter", "sync", environment=environment)


def retry_info(seconds):
    detail = ProtobufAny()
    detail.Pack(RetryInfo(retry_delay={"seconds": seconds}))
    return (("grpc-status-details-bin", Status(code=8, details=[detail]).SerializeToString()),)


@pytest.mark.parametrize(
    ("code", "details", "metadata", "expected"),
    [
        ("UNAVAILABLE", "", (), Retry),
        ("UNAVAILABLE", "", retry_info(9), Retry),
        ("RESOURCE_EXHAUSTED", "quota", (), Rejected),
        ("RESOURCE_EXHAUSTED", "quota", retry_info(9), Retry),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (9 vs. 4)", (), TooLarge),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 9 bytes", (), TooLarge),
        ("INVALID_ARGUMENT", "", (), Rejected),
        ("UNAUTHENTICATED", "", (), Unauthorized),
        ("PERMISSION_DENIED", "", (), Unauthorized),
        ("DATA_LOSS", "", (), Retry),
    ],
)
def test_each_grpc_status_is_an_outcome(make, config, rpc, code, details, metadata, expected):
    rpc.fail = (getattr(grpc.StatusCode, code), details, metadata)
    with exporting(config(endpoint=f"http://127.0.0.1:{rpc.port}", protocol="grpc")) as exporter:
        outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}})))
    assert isinstance(outcome, expected)
    if expected is Rejected:
        assert outcome.divide is (code != "RESOURCE_EXHAUSTED"), "only what can be about something in the request"
    if metadata:
        assert outcome.after == 9


@pytest.mark.parametrize(("size", "expected"), [(100_000, Accepted), (5_000_000, Retry)])
def test_a_long_answer_by_grpc_does_not_divide_the_request(make, config, rpc, size, expected):
    rpc.answer = ExportMetricsServiceResponse(partial_success={"error_message": "x" * size}).SerializeToString()
    with exporting(config(endpoint=f"http://127.0.0.1:{rpc.port}", protocol="grpc")) as exporter:
        assert isinstance(exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}))), expected)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("200", Retry),
        ("302", Retry),
        ("400", Retry),
        ("401", Unauthorized),
        ("404", Retry),
        ("408", Retry),
        ("413", TooLarge),
        ("500", Retry),
        ("502", Retry),
    ],
)
def test_an_answer_that_is_not_grpc_is_no_refusal(make, config, status, expected):
    head = b"\x08\x03" + status.encode()  # HPACK: `:status`, not indexed
    with (
        speaking_http2([(1, 4, head), (0, 1, b"<html>Log in</html>")]) as port,
        exporting(config(endpoint=f"http://127.0.0.1:{port}", protocol="grpc")) as exporter,
    ):
        outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}})))
    assert isinstance(outcome, expected), outcome


def test_a_message_that_is_too_large_for_grpc_is_divided(make, config, rpc):
    with exporting(config(endpoint=f"http://127.0.0.1:{rpc.port}", protocol="grpc")) as exporter:
        large = make.logged(1, make.rows({step: {"loss": 1.0} for step in range(5000)}))
        assert isinstance(exporter.export(large), TooLarge)
