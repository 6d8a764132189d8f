"""The protocol's answers, exactly."""

import concurrent.futures
import gzip
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from tensormeter.otlp.batch import Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics

T0 = 1_750_000_000_000_000_000
SIGNALS = ["/v1/metrics", "/v1/logs"]


def assert_status(answer, http, code):
    """The body is a google.rpc.Status: int32 code = 1, string message = 2."""
    assert answer.status == http
    assert answer.headers["Content-Type"] == "application/x-protobuf"
    assert answer.data[:2] == bytes((8, code))
    assert answer.data[2] == 18
    length, start = (answer.data[3], 4) if answer.data[3] < 128 else (answer.data[3] - 128 + (answer.data[4] << 7), 5)
    message = answer.data[start:].decode()
    assert len(answer.data) == start + length
    return message


@pytest.mark.parametrize("path", SIGNALS)
@pytest.mark.parametrize("encoding", ["identity", "gzip", "GZIP"])
def test_an_empty_request_succeeds(server, path, encoding):
    body = b"" if encoding == "identity" else gzip.compress(b"")
    answer = server.post(path, body, Content_Encoding=encoding)
    assert (answer.status, answer.data) == (200, b"")
    assert answer.headers["Content-Type"] == "application/x-protobuf"


@pytest.mark.parametrize("path", SIGNALS)
def test_what_cannot_be_understood(server, path):
    assert "protobuf" in assert_status(server.post(path, b"\x0a\xff"), 400, 3)
    assert "gzip" in assert_status(server.post(path, b"nope", Content_Encoding="gzip"), 400, 3)
    assert "truncated" in assert_status(
        server.post(path, gzip.compress(b"x" * 99)[:-9], Content_Encoding="gzip"), 400, 3
    )
    assert "gzip" in assert_status(server.post(path, gzip.compress(b"") + b"x", Content_Encoding="gzip"), 400, 3)
    for encoding in ("gzip, gzip", "br", "deflate"):
        assert_status(server.post(path, b"", Content_Encoding=encoding), 415, 3)
    assert "zstd" in assert_status(server.post(path, b"nope", Content_Encoding="zstd"), 400, 3)
    cut = zstandard.compress(b"x" * 99)[:-9]
    assert "truncated" in assert_status(server.post(path, cut, Content_Encoding="zstd"), 400, 3)
    assert_status(server.post(path, b"", Content_Type="text/plain"), 415, 3)
    assert server.post(path, b"", Content_Type="Application/X-Protobuf; x=y").status == 200
    answer = server.http.request("GET", f"{server.url}{path}")
    assert_status(answer, 405, 12)
    assert answer.headers["Allow"] == "POST"
    assert_status(server.post("/v1/traces", b""), 404, 5)
    assert_status(server.post(path, b"", Tensormeter_Batch_Id="x" * 201), 400, 3)


def test_members_of_gzip_are_joined(server, make):
    body = encode_metrics([make.rows("members", [(T0, 0, {"v": 1.0})])])
    parts = gzip.compress(body[:20]) + gzip.compress(b"") + gzip.compress(body[20:])
    assert server.post("/v1/metrics", parts, Content_Encoding="gzip").status == 200
    assert server.get("/api/v1/runs/members")["points"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of another process from /proc")
def test_too_large_before_and_after_decompression(server):
    limit = 64 << 20
    with server.connect() as connection:
        head = "POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
        connection.sendall(f"{head}Content-Length: {limit + 1}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")  # answered without a byte of the body

    def memory():
        fields = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in fields if line.startswith("VmHWM:")) << 10

    before = memory()
    bomb = gzip.compress(bytes(1 << 20), 9) * 2048  # 2 GiB in 2 MB
    assert "64" in assert_status(server.post("/v1/metrics", bomb, Content_Encoding="gzip"), 413, 3)
    assert memory() - before < 3 * limit

    def endless():
        for _ in range(70):
            yield bytes(1 << 20)

    try:
        answer = server.http.request(
            "POST",
            f"{server.url}/v1/metrics",
            body=endless(),
            headers={"Content-Type": "application/x-protobuf"},
            chunked=True,
        )
    except OSError:  # the server may close while the client still sends
        pass
    else:
        assert_status(answer, 413, 3)
    assert server.get("/healthz") == {"status": "ok"}


def test_points_that_cannot_be_stored_are_reported(server_on_each, make):
    server = server_on_each

    def gauge(name, time=T0, **attributes):
        return Gauge(name, np.array([time], np.uint64), np.array([1.0]), attributes=attributes)

    gauges = [gauge("ok"), gauge(""), gauge("n" * 1025), gauge("a", key="v" * 20_000), gauge("late", 2**63)]
    answer = server.metrics(Batch(make.resource("limits"), gauges), Batch(make.resource("../x"), [gauge("v")]))
    partial = ExportMetricsServiceResponse.FromString(answer.data).partial_success
    assert partial.rejected_data_points == 5
    for words in ("no name", "name or scope is longer", "attributes are longer", "time is", "tensormeter.run.id"):
        assert words in partial.error_message
    assert list(server.get("/api/v1/runs/limits")["summary"]) == ["ok"]

    events = encode_events(make.resource("limits"), [Event("n" * 1025, T0), Event("fine", T0)])
    answer = server.post("/v1/logs", events)
    partial = ExportLogsServiceResponse.FromString(answer.data).partial_success
    assert (partial.rejected_log_records, "name" in partial.error_message) == (1, True)


def test_one_batch_many_times_at_once_and_in_any_order_is_stored_once(server_on_each, make):
    server = server_on_each
    bodies = [encode_metrics([make.rows("once", [(T0 + i, i, {"v": float(i)})])]) for i in range(8)]
    sends = [i for i in range(8) for _ in range(10)]
    random.Random(0).shuffle(sends)

    def send(i):
        body = bodies[i] if i % 2 else gzip.compress(bodies[i])
        return server.post(
            "/v1/metrics", body, Tensormeter_Batch_Id=f"once-{i}", Content_Encoding="identity" if i % 2 else "gzip"
        ).status

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, sends)) == {200}
    (series,) = server.get("/api/v1/runs/once/series", metric="v")["series"]
    assert series["value"] == [float(i) for i in range(8)]
    assert server.get("/api/v1/runs/once")["points"] == 16

    message = assert_status(server.post("/v1/metrics", bodies[0], Tensormeter_Batch_Id="once-1"), 409, 6)
    assert "once-1" in message
    assert server.post("/v1/logs", b"", Tensormeter_Batch_Id="once-1").status == 409


def test_the_same_points_without_a_batch_id_are_read_once_and_the_first_wins(server, make):
    for value in (1.0, 2.0, 3.0):
        assert server.metrics(make.rows("resent", [(T0, 0, {"v": value}), (T0 + 1, 1, {"v": value})])).status == 200
    (series,) = server.get("/api/v1/runs/resent/series", metric="v")["series"]
    assert series["value"] == [1.0, 1.0]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_bytes_make_the_server_fail(server, data):
    """Fuzz: random bytes, and real requests with bytes changed."""
    path = data.draw(st.sampled_from(SIGNALS))
    if data.draw(st.booleans()):
        body = data.draw(st.binary(max_size=200))
    else:
        gauge = Gauge("v", np.array([T0], np.uint64), np.array([1.0]), attributes={"k": "v"})
        resource = {"service.name": "fuzz", "tensormeter.run.id": "fuzz"}
        event = Event("tensormeter.run.start", T0, {"config": {"a": [1, None, b"x"]}})
        whole = encode_metrics([Batch(resource, [gauge])]) if path == SIGNALS[0] else encode_events(resource, [event])
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        body = bytes(changed)
    encoding = data.draw(st.sampled_from(["identity", "gzip"]))
    if encoding == "gzip":
        body = gzip.compress(body)
    assert server.post(path, body, Content_Encoding=encoding).status in (200, 400)


def test_after_the_fuzz_every_page_is_valid_json(server):
    runs = server.get("/api/v1/runs", limit=1000)["runs"]
    for run in runs:
        path = f"/api/v1/runs/{run['id']}"
        assert json.dumps(server.get(path, project=run["project"]), allow_nan=False)
        for metric in server.get(f"{path}/metrics", project=run["project"])["metrics"]:
            if metric["kind"] in ("gauge", "sum"):
                assert server.get(f"{path}/series", project=run["project"], metric=metric["name"])["series"]
