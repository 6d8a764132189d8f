"""Any OTLP endpoint: the standard variables, HTTP and gRPC, TLS, and what each answer means. Real sockets."""

import contextlib
import dataclasses
import gzip
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from google.protobuf.any_pb2 import Any as ProtobufAny
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from tensormeter import Settings
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Rejected, Retry, TooLarge, Unauthorized
from tensormeter_exporters.experiment import ExperimentExporter
from tensormeter_exporters.otlp import OtlpExporter
from tensormeter_exporters.otlp_environment import read_targets

PARTIAL = ExportMetricsServiceResponse(
    partial_success={"rejected_data_points": 2, "error_message": "two were bad"},
).SerializeToString()


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch, clean_environment):
    import os

    for variable in set(os.environ) - set(clean_environment):
        monkeypatch.delenv(variable)


class Http:
    def __init__(self, context=None):
        self.received = []
        self.answers = []
        http = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                http.received.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                status, headers, answer = http.answers.pop(0) if http.answers else (200, {}, b"")
                self.send_response(status)
                for key, value in ({"Content-Type": "application/x-protobuf"} | headers).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def http():
    server = Http()
    yield server
    server.stop()


class Grpc:
    """A metrics service that answers as it is told."""

    def __init__(self, credentials=None):
        self.received = []
        self.fail = None
        self.answer = b""

        def export(body, context):
            self.received.append((body, dict(context.invocation_metadata())))
            if self.fail is not None:
                code, details, metadata = self.fail
                context.set_trailing_metadata(metadata)
                context.abort(code, details)
            return self.answer

        self._pool = ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", 100_000)])
        handler = grpc.unary_unary_rpc_method_handler(export)
        service = "opentelemetry.proto.collector.metrics.v1.MetricsService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        address = "127.0.0.1:0"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    def stop(self):
        self._server.stop(None).wait(60)
        self._pool.shutdown()


@pytest.fixture
def rpc():
    server = Grpc()
    yield server
    server.stop()


@contextlib.contextmanager
def exporting(config):
    exporter = OtlpExporter(config)
    try:
        yield exporter
    finally:
        exporter.shutdown()


def test_defaults_are_the_standards(config):
    targets = read_targets(config())
    assert targets["metrics"].endpoint == "http://localhost:4318/v1/metrics"
    assert targets["logs"].endpoint == "http://localhost:4318/v1/logs"
    assert targets["metrics"].gzip
    assert read_targets(config(protocol="grpc"))["logs"].endpoint == "localhost:4317"


def test_options_before_signals_before_the_general(config, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://general:1/base/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://metrics:2/as/it/is")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b, x=1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "only=logs")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    targets = read_targets(config())
    assert targets["metrics"].endpoint == "https://metrics:2/as/it/is"
    assert targets["logs"].endpoint == "https://general:1/base/v1/logs"
    assert targets["metrics"].secure
    assert not targets["metrics"].gzip
    assert targets["metrics"].headers == {"api-key": "a b", "x": "1"}
    assert targets["logs"].headers == {"only": "logs"}
    assert "a b" not in repr(targets["metrics"])
    monkeypatch.setenv("OTHERS", "k=v")
    given = read_targets(config(endpoint="http://mine", compression="gzip", headers_variable="OTHERS"))["metrics"]
    assert (given.endpoint, given.gzip, given.headers) == ("http://mine/v1/metrics", True, {"k": "v"})


@pytest.mark.parametrize(
    ("endpoint", "insecure", "expected"),
    [
        ("collector:4317", "true", ("collector:4317", False)),
        ("collector:4317", "", ("collector:4317", True)),
        ("http://collector", "", ("collector:4317", False)),
        ("https://collector:443", "true", ("collector:443", True)),
    ],
)
def test_grpc_endpoints(config, endpoint, insecure, expected):
    target = read_targets(config(protocol="grpc", endpoint=endpoint, insecure=insecure))["metrics"]
    assert (target.endpoint, target.secure) == expected


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("collector:4317", ("collector:4317", True)),
        ("collector", ("collector:4317", True)),
        ("http://collector:4317/", ("collector:4317", False)),
        ("HTTPS://Collector:4317/some/path?x=1", ("collector:4317", True)),
        ("grpc://collector:4317", ("collector:4317", True)),
        ("http://[::1]:4317", ("[::1]:4317", False)),
        ("[::1]:4317", ("[::1]:4317", True)),
        ("dns:///collector:4317", ("dns:///collector:4317", True)),
        ("dns:4317", ("dns:4317", True)),
        ("unix:///run/collector.sock", ("unix:///run/collector.sock", True)),
        ("ipv4:10.0.0.1:4317,10.0.0.2:4317", ("ipv4:10.0.0.1:4317,10.0.0.2:4317", True)),
    ],
)
@pytest.mark.parametrize("insecure", ["TRUE", "false", None])
def test_grpc_takes_endpoints_in_every_form_that_its_clients_take(config, monkeypatch, endpoint, expected, insecure):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "GRPC")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    if insecure is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", insecure)
    address, secure_by_default = expected
    scheme = endpoint.partition("://")[0].lower()
    secure = secure_by_default and (insecure != "TRUE" or scheme == "https")
    for target in read_targets(config()).values():
        assert (target.protocol, target.endpoint, target.secure) == ("grpc", address, secure)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("protocol", "http/json"),
        ("compression", "zstd"),
        ("endpoint", "collector:4318"),
        ("endpoint", "ftp://x"),
        ("endpoint", "http://user:secret@x"),
        ("endpoint", "user:secret@x"),
        ("endpoint", "http://a b"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error_without_secrets(config, option, value):
    with pytest.raises(SettingsError, match=f"expected an? {option}") as caught:
        read_targets(config(**{option: value}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("signal", ["", "METRICS_"])
@pytest.mark.parametrize(
    ("variable", "value", "ignored"),
    [
        ("PROTOCOL", "http/json", True),
        ("PROTOCOL", "HTTP/Protobuf", False),
        ("COMPRESSION", "zstd", True),
        ("COMPRESSION", " GZip ", False),
        ("COMPRESSION", "", False),
        ("TIMEOUT", "soon", True),
        ("TIMEOUT", "-1", True),
        ("TIMEOUT", "1e3", False),
        ("ENDPOINT", "ftp://x", True),
        ("ENDPOINT", "collector:4317", True),
        ("ENDPOINT", "http://", True),
        ("ENDPOINT", "http://a b", True),
        ("ENDPOINT", "http://a:port", True),
        ("ENDPOINT", "http://a:0", True),
        ("ENDPOINT", f"http://{'a' * 70}", True),
        ("ENDPOINT", "http://[::1", True),
        ("INSECURE", "maybe", False),  # HTTP has no use for it
        ("CERTIFICATE", "/nowhere/ca.pem", False),  # nor for this without TLS
        ("HEADERS", "hunter2", True),
        ("HEADERS", "key=hunter2%0d%0ahost: x", True),
        ("HEADERS", "key=hunter2\u2603", True),
        ("HEADERS", "content-type=hunter2", True),
        ("HEADERS", "a b=hunter2", True),
        ("HEADERS", ",", False),
    ],
)
def test_a_variable_that_cannot_be_used_is_warned_about_once_and_ignored(
    config, monkeypatch, caplog, signal, variable, value, ignored
):
    default = read_targets(config())["metrics"]
    name = f"OTEL_EXPORTER_OTLP_{signal}{variable}"
    monkeypatch.setenv(name, value)
    for _ in range(2):
        target = read_targets(config(timeout=10.0))["metrics"]
    assert target.endpoint == default.endpoint
    assert (target.protocol, target.gzip, target.headers) == ("http/protobuf", True, {})
    assert [name in record.getMessage() for record in caplog.records] == [True] * ignored
    assert "hunter2" not in caplog.text


def test_a_variable_of_the_signal_that_cannot_be_used_leaves_the_general_one(config, monkeypatch):
    for name, value in {
        "PROTOCOL": "grpc",
        "METRICS_PROTOCOL": "http/json",
        "COMPRESSION": "none",
        "METRICS_COMPRESSION": "zstd",
        "ENDPOINT": "http://general:1",
        "METRICS_ENDPOINT": "http://a b",
    }.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    target = read_targets(config())["metrics"]
    assert (target.protocol, target.endpoint, target.gzip) == ("grpc", "general:1", False)


def test_credentials_in_an_endpoint_become_a_header(config, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://me:hunter%402@vendor/otlp/?region=eu#x")
    target = read_targets(config())["logs"]
    assert target.endpoint == "https://vendor/otlp/v1/logs?region=eu"
    assert target.headers == {"authorization": "Basic bWU6aHVudGVyQDI="}
    assert "hunter" not in repr(target)


@pytest.mark.parametrize(
    ("variables", "given", "seconds"),
    [
        ({}, 10.0, 10.0),
        ({"TIMEOUT": "5000"}, 5.0, 5.0),
        ({"TIMEOUT": "5000", "METRICS_TIMEOUT": "7000"}, 5.0, 7.0),
        ({"METRICS_TIMEOUT": "0"}, 10.0, 3600.0),
        ({"METRICS_TIMEOUT": "1e12"}, 10.0, 3600.0),
        ({"METRICS_TIMEOUT": "1"}, 10.0, 0.1),
        ({"METRICS_TIMEOUT": "7000"}, 3.0, 3.0),  # the setting has a value of its own
    ],
)
def test_timeouts_of_signals(config, monkeypatch, variables, given, seconds):
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    assert read_targets(config(timeout=given))["metrics"].timeout == seconds


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
def test_http_answers(make, config, http, answer, expected):
    http.answers.append(answer)
    with exporting(config(endpoint=f"http://127.0.0.1:{http.port}")) as exporter:
        outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}})))
    assert outcome == expected if isinstance(expected, Accepted) else isinstance(outcome, expected)
    if answer[0] == 429:
        assert outcome.after == 7
    if expected is Rejected:
        assert outcome.divide is (answer[0] != 415), "only what can be about something in the request"
    assert len(http.received) == 1  # a redirect is not followed


def test_nobody_there(make, config, free_port):
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    for protocol in ("http/protobuf", "grpc"):
        with exporting(config(endpoint=f"http://127.0.0.1:{free_port()}", protocol=protocol)) as exporter:
            assert isinstance(exporter.export(request), Retry)


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
def test_what_the_receiver_explains_is_passed_on(make, config, http, kind, body, words):
    http.answers.append((400, {"Content-Type": kind}, body))
    with exporting(config(endpoint=f"http://127.0.0.1:{http.port}")) as exporter:
        outcome = exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}})))
    expected = f"http://127.0.0.1:{http.port}/v1/metrics answered 400 Bad Request"
    assert outcome.reason == (f"{expected}: {words}" if words else expected)


def test_each_signal_has_only_what_it_needs(config, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "nonsense://x")
    metrics = dataclasses.replace(config(endpoint=""), signals=("metrics",))
    assert list(read_targets(metrics)) == ["metrics"]


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
        "TENSORMETER_EXPORTERS": "otlp",
        "TENSORMETER_LINGER_TIMEOUT": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{rpc.port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    command = [sys.executable, "-c", TRAINER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
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
        command = [sys.executable, "-m", "tensormeter", "sync"]
        subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)


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
def test_grpc_answers(make, config, rpc, code, details, metadata, expected):
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


@contextlib.contextmanager
def speaking_http2(frames):
    """A server at which no gRPC listens: it answers each request with frames of HTTP/2, (type, flags, content)."""
    listener = socket.create_server(("127.0.0.1", 0))

    def frame(kind, flags, stream, content=b""):
        return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as incoming:
            connection.sendall(frame(4, 0, 0))  # SETTINGS
            incoming.read(24)  # the preface
            while head := incoming.read(9):
                incoming.read(int.from_bytes(head[:3], "big"))
                if head[3] in (0, 1) and head[4] & 1:  # the end of a request
                    stream = int.from_bytes(head[5:], "big")
                    connection.sendall(b"".join(frame(kind, flags, stream, content) for kind, flags, content in frames))

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


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


def test_a_message_that_grpc_itself_finds_too_large(make, config, rpc):
    with exporting(config(endpoint=f"http://127.0.0.1:{rpc.port}", protocol="grpc")) as exporter:
        large = make.logged(1, make.rows({step: {"loss": 1.0} for step in range(5000)}))
        assert isinstance(exporter.export(large), TooLarge)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, a server's certificate for 127.0.0.1 and a client's, by OpenSSL's own tool."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "30")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "30", "-extfile", "names")  # fmt: skip
    return folder


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_mutual_tls(make, config, certificates, monkeypatch, protocol):
    if protocol == "grpc":
        pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
        authority = (certificates / "ca.pem").read_bytes()
        server = Grpc(grpc.ssl_server_credentials([pair], authority, require_client_auth=True))
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED
        server = Http(context)
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    target = {"endpoint": f"https://127.0.0.1:{server.port}", "protocol": protocol}
    try:
        with exporting(config(**target)) as exporter:
            assert isinstance(exporter.export(request), Retry)  # an authority that nobody knows
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates / "ca.pem"))
        with exporting(config(**target)) as exporter:
            assert isinstance(exporter.export(request), Retry)  # the server wants to know who we are
        assert not server.received
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(certificates / "client.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(certificates / "client.key"))
        with exporting(config(**target)) as exporter:
            assert exporter.export(request) == Accepted()
        assert len(server.received) == 1
    finally:
        server.stop()
    with pytest.raises(SettingsError, match="cannot be read"):
        OtlpExporter(config(**target, certificate=str(certificates / "none.pem")))


def test_tls_goes_on_without_a_key_log_that_cannot_be_written(make, config, certificates, monkeypatch, caplog):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server = Http(context)
    monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificates / "ca.pem"))
    try:
        with exporting(config(endpoint=f"https://127.0.0.1:{server.port}")) as exporter:
            assert exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}))) == Accepted()
    finally:
        server.stop()
    assert ["SSLKEYLOGFILE" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("CERTIFICATE", "none.pem"),
        ("CERTIFICATE", "ca.key"),
        ("CERTIFICATE", ""),
        ("CLIENT_CERTIFICATE", "none.pem"),
        ("CLIENT_CERTIFICATE", "client.pem"),  # without its key
        ("CLIENT_KEY", "client.key"),  # without its certificate
    ],
)
def test_certificates_of_variables_that_cannot_be_used_are_warned_about_and_left_out(
    config, certificates, monkeypatch, caplog, protocol, variable, name
):
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{variable}", str(certificates / name))
    target = {"endpoint": "https://127.0.0.1:1", "protocol": protocol}
    with exporting(config(**target)):
        used = read_targets(config(**target))["metrics"]
    assert (used.certificate, used.client_certificate, used.client_key) == ("", "", "")
    assert [f"OTEL_EXPORTER_OTLP_{variable}" in record.getMessage() for record in caplog.records] == [True]


def test_the_message_is_what_it_claims(make):
    """What the servers above compare with is a message with a step beside the value."""
    body = gzip.decompress(make.logged(1, make.rows({1: {"loss": 1.0}})).body)
    (scope,) = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics
    assert [metric.name for metric in scope.metrics] == ["tensormeter.step", "loss"]
