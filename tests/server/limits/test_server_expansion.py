"""Limits on the cost of one request with any content: 5 s of processor time and 300 MB of memory.

`support.expansion` creates the request bodies. `make fuzz` sends many more bodies, which are larger and random.
"""

import contextlib
import gzip
import itertools
import json
import os
import socket
import sys
import time
import zlib
from urllib.parse import urlsplit

import anyio
import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from starlette.requests import ClientDisconnect, Request

from support import expansion
from support.coroutines import run_coroutine
from support.expansion import JSON, PROTOBUF
from tensormeter.agent.delivery.delivery import Delivery
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.otlp.batch import Batch, Event, Gauge
from tensormeter.otlp.elements import (
    COLUMN,
    MAX_ELEMENTS,
    MAX_QUANTILES,
    TooManyElementsError,
    check_logs,
    check_metrics,
)
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.json import MAX_JSON_ELEMENTS
from tensormeter.otlp.varint import encode_varint
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.authenticator import Access
from tensormeter.server.limits.cpu_budget import MAX_SECONDS, CpuBudget
from tensormeter.server.limits.responses import BufferedResponse, ResponseLimiter
from tensormeter.server.store import TooManyPointsError
from tensormeter.settings import Settings

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of another process from /proc")
T0 = 1_750_000_000_000_000_000
MANY = bool(os.environ.get("TENSORMETER_TEST_KILLS"))
"""Whether to send all bodies, as `make chaos` does."""

SMALL = 4 << 20
"""Bytes of a body of which gzip makes some thousand."""


def is_too_slow(cost, name):
    """Whether a request only exceeds the bound of CPU time, by less than twice. Its memory is bounded all the same.

    The server's own limit is in seconds of CPU time, so a processor at two thirds of its speed reaches it here.
    """
    slow = b"s of CPU time" in cost.message or expansion.MAX_SECONDS <= cost.seconds < 2 * expansion.MAX_SECONDS
    if slow:
        assert cost.peak < expansion.MAX_BYTES, (name, cost)
        assert cost.seconds < 2 * expansion.MAX_SECONDS, (name, cost)
    return slow


def skip_if_too_slow(cost, name):
    if is_too_slow(cost, name):
        pytest.skip(f"this machine is too slow now: {name} took {cost.seconds:.1f} s of CPU time")


def assert_bounded(cost, name):
    assert cost.status in (200, 400, 413), (name, cost)
    assert cost.seconds < expansion.MAX_SECONDS, (name, cost)
    assert cost.peak < expansion.MAX_BYTES, (name, cost)


@linux
@pytest.mark.parametrize("encoding", expansion.ENCODINGS)
@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_small_bodies_of_many_things_are_refused_at_once(server, content_type, encoding):
    """Two million empty resources in 4 KB took 45 s and 0.8 GB."""
    meter = expansion.Meter(server)
    body = {
        PROTOBUF: b"\x0a\x00" * (SMALL // 2),
        JSON: b'{"resourceMetrics":[' + b"{}," * (SMALL // 3) + b"{}]}",
    }[content_type]
    cost = meter.send(expansion.Body("empty resources", "/v1/metrics", content_type, body), encoding)
    assert_bounded(cost, "empty resources")
    assert cost.status == 413
    reason = json.loads(cost.message)["message"] if content_type == JSON else cost.message.decode()
    named = f"{MAX_JSON_ELEMENTS} braces" if content_type == JSON else f"{MAX_ELEMENTS['resources']} resources"
    assert named in reason


@linux
def test_a_point_of_many_attributes_is_refused_at_once(server):
    """It has the layout of a column of numbers, which are not read by protobuf."""

    def nest(*outer, content):
        for number in reversed(outer):
            content = bytes([number << 3 | 2]) + encode_varint(len(content)) + content
        return content

    point = b"\x19" + T0.to_bytes(8, "little") + b"\x21" + bytes(8) + b"\x3a\x00" * (30 << 20)
    meter = expansion.Meter(server)
    body = expansion.Body("attributes", "/v1/metrics", PROTOBUF, nest(1, 2, 2, 5, 1, content=point))
    cost = meter.send(body, "gzip")
    assert_bounded(cost, "attributes of a point")
    assert cost.status == 413


@linux
def test_every_field_repeated_at_every_level_is_bounded(server):
    """Some 90 requests, because each field of each message has a separate cost. `make chaos` and `make fuzz` send all."""
    meter = expansion.Meter(server)
    statuses = set()
    for body in itertools.islice(expansion.bodies(1 << 20), None, None, 1 if MANY else 3):
        cost = meter.send(body, "gzip")
        assert_bounded(cost, body.name)
        statuses.add(cost.status)
    assert statuses == {200, 413}


@linux
def test_requests_at_the_bounds_are_taken_at_bounded_cost(start_on_each, tmp_path, request):
    """Each request holds nearly as much of something as one may, 64 MiB at most.

    Each has a separate server, which folds nothing of earlier ones meanwhile. SQLite gets every second one, and ClickHouse every
    sixth, because the servers differ only in how they store it; `make chaos` sends all to both, and `make fuzz` to SQLite.
    """
    every = 1 if MANY else 6 if "clickhouse" in request.node.callspec.id else 2
    bodies = list(expansion.allowed())[::every]
    refused, slow = [], []
    for number, body in enumerate(bodies):
        server = start_on_each(folder=tmp_path / str(number))
        cost = expansion.Meter(server).send(body, "gzip")
        server.kill()
        if is_too_slow(cost, body.name):
            slow.append(body.name)
            continue
        assert_bounded(cost, body.name)
        refused += [body.name] * (cost.status != 200)
    expected = ["a text of 62 MiB in wide characters", "a name of 62 MiB in wide characters"]
    sent = {body.name for body in bodies}
    assert refused == [name for name in expected if name in sent and name not in slow]
    if slow:
        pytest.skip(f"this machine is too slow now for the CPU time of {', '.join(slow)}")


@linux
def test_a_million_points_and_fifty_thousand_series_fit_into_one_request(server):
    meter = expansion.Meter(server)
    resource = {"service.name": "large", "tensormeter.run.id": "million"}
    times = np.arange(T0, T0 + 1000, dtype=np.uint64)
    series = [Gauge(f"metric/{number}", times, np.arange(1000.0)) for number in range(1000)]
    cost = meter.send(
        expansion.Body("million", "/v1/metrics", PROTOBUF, encode_metrics([Batch(resource, series)])), "gzip"
    )
    assert (cost.status, cost.message) == (200, b"")
    assert_bounded(cost, "million")
    series = [Gauge(f"metric/{number}", times[:1], np.array([1.5])) for number in range(50_000)]
    resource |= {"tensormeter.run.id": "series"}
    cost = meter.send(
        expansion.Body("series", "/v1/metrics", PROTOBUF, encode_metrics([Batch(resource, series)])), "gzip"
    )
    assert (cost.status, cost.message) == (200, b"")
    assert_bounded(cost, "series")
    mixed = expansion.Body("mixed", "/v1/metrics", PROTOBUF, expansion.mixed_series(1000, 1000))
    cost = meter.send(mixed, "gzip")
    skip_if_too_slow(cost, "mixed")
    assert (cost.status, cost.message) == (200, b"")
    assert_bounded(cost, "mixed")
    (run,) = server.get("/api/v1/runs", project="mixed")["runs"]
    assert run["points"] == 1_000_000
    (metric,) = server.get(f"/api/v1/runs/{run['id']}/metrics", project="mixed")["metrics"]
    assert sorted(attributes["series"] for attributes in metric["attributes"]) == [
        f"{number:04}" for number in range(1000)
    ]
    assert server.get("/api/v1/runs/million", project="large")["points"] == 1_000_000
    assert server.get("/api/v1/runs/series", project="large")["points"] == 50_000


def test_the_walk_understands_what_protobuf_understands():
    checks = {"/v1/metrics": check_metrics, "/v1/logs": check_logs}
    bodies = list(expansion.bodies(1000, (PROTOBUF,)))
    assert {body.path for body in bodies} == set(checks)
    for body in bodies:
        checks[body.path](body.data)


def test_points_in_columns_count_as_one_only_where_they_are_read_as_columns():
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    for index in range(MAX_ELEMENTS["separate points"] + 1):
        metric.gauge.data_points.add(time_unix_nano=T0 + index, as_double=index)
    check_metrics(request.SerializeToString())
    # Two occurrences of the field are one gauge to protobuf, which reads its points one by one.
    gauge = metric.gauge.SerializeToString()
    twice = metric.SerializeToString() + b"\x2a\x00"
    assert metric.FromString(twice).gauge.SerializeToString() == gauge
    body = _wrapped(1, _wrapped(2, _wrapped(2, twice)))
    with pytest.raises(TooManyElementsError, match="separate points"):
        check_metrics(body)


def test_columns_of_too_many_series_are_refused():
    """50,000 series of 60 points took 8 s: each series costs more than its points do."""
    times = np.arange(T0, T0 + 60, dtype=np.uint64)
    most = MAX_ELEMENTS["separate points"] // COLUMN
    series = [Gauge(f"metric/{number}", times, np.arange(60.0)) for number in range(most + 1)]
    check_metrics(encode_metrics([Batch({"service.name": "columns"}, series[:most])]))
    with pytest.raises(TooManyElementsError, match="separate points"):
        check_metrics(encode_metrics([Batch({"service.name": "columns"}, series)]))


def test_a_summary_of_too_many_quantiles_is_refused():
    """One of 490,000 took 333 MB, and was larger than any distribution that a store takes."""
    request = ExportMetricsServiceRequest()
    points = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m").summary.data_points
    for _ in range(3):
        point = points.add(time_unix_nano=T0, count=1)
        for _ in range(MAX_QUANTILES):
            point.quantile_values.add(quantile=0.5, value=1)
    check_metrics(request.SerializeToString())
    points[1].quantile_values.add(quantile=1, value=1)
    with pytest.raises(TooManyElementsError, match="quantiles"):
        check_metrics(request.SerializeToString())


@pytest.mark.parametrize(
    "tail", [b"\x0b", b"\x0c", b"\x0b\x0c", b"\x08" + b"\xff" * 11 + b"\x00", b"\x0a\x05\x00", b"\x08"]
)
def test_what_is_no_message_is_refused_before_it_is_read(server, tail):
    good = _wrapped(1, b"")
    assert server.post("/v1/metrics", good + tail).status == 400
    assert server.post("/v1/logs", good + tail).status == 400


@linux
def test_a_body_of_empty_deflate_blocks_takes_bounded_time(server):
    """Each block makes tables for its codes, and yields nothing."""
    writer = zlib.compressobj(9, zlib.DEFLATED, -15, strategy=zlib.Z_FILTERED)
    block = writer.compress(bytes(range(64)) * 2) + writer.flush(zlib.Z_FULL_FLUSH)
    body = gzip.compress(b"")[:10] + block * ((60 << 20) // len(block))
    meter = expansion.Meter(server)
    cost = meter.send(expansion.Body("deflate", "/v1/metrics", PROTOBUF, body), expansion.AS_IS)
    assert_bounded(cost, "deflate")


@linux
def test_a_filter_takes_bounded_time(start, make):
    server = start()
    server.metrics(*(make.rows(f"run-{number}", [(T0, 0, {"v": 1.0})], project="filter") for number in range(200)))
    for number in range(200):  # a value that several runs share is matched only once
        server.send("PATCH", f"/api/v1/runs/run-{number}?project=filter", {"notes": f"{number}{'x' * 60_000}"})
    meter = expansion.Meter(server)
    for pattern in ("[xy]{0,500}.{0,400}q", "[xy]{0,500}[^v]{0,400}q"):  # the second could match several lines
        before = meter.seconds()
        slow = " or ".join([f'notes ~ "{pattern}"'] * 10)
        status, answer = server.ask("/api/v1/runs", project="filter", filter=slow)
        assert (status, answer["error"]["code"]) == (413, "too_large")
        assert "CPU time" in answer["error"]["message"]
        assert meter.seconds() - before < expansion.MAX_SECONDS
    for many in (
        " or ".join(['name ~ "a"'] * 11),
        " or ".join(["id=1"] * 501),
        " or ".join(f"config.{i}=1" for i in range(102)),
    ):
        status, answer = server.ask("/api/v1/runs", filter=many.replace("config.", "config.k"))
        assert (status, answer["error"]["code"]) == (400, "bad_request")
        assert "more than" in answer["error"]["message"]
    status, answer = server.ask("/api/v1/runs", fields=",".join(f"config.k{number}" for number in range(1001)))
    assert status == 400


@linux
def test_a_metric_of_many_series_is_read_at_bounded_cost(server_on_each):
    """The time grew with the square of their number: one of 49,000 series of a point, which a request of 2 MB makes, took 51 s."""
    server = server_on_each
    series = [
        Gauge("many", np.array([T0 + number * 10**6], np.uint64), np.array([1.5]), attributes={"number": number})
        for number in range(25_000)
    ]
    resource = {"service.name": "series", "tensormeter.run.id": "many", "service.instance.id": "p"}
    assert server.post("/v1/metrics", encode_metrics([Batch(resource, series)])).status == 200
    meter = expansion.Meter(server)
    binary = {"Accept": "application/vnd.tensormeter.columns"}
    query = {"runs": ["series/many"], "metrics": ["many"], "x": "time"}
    for status, method, path, body, headers in (
        (200, "GET", "series?x=time", None, {}),
        (200, "GET", "series?x=time", None, binary),
        (200, "GET", "ranks?x=time", None, {}),
        (413, "POST", "query", query, {}),
        (200, "POST", "query", query | {"attributes": {"number": 7}}, {}),
    ):
        before = meter.seconds()
        if method == "GET":
            target = f"{server.url}/api/v1/runs/many/{path}&project=series&metric=many"
            answer = server.http.request("GET", target, headers=headers)
        else:
            answer = server.http.request("POST", f"{server.url}/api/v1/{path}", json=body, headers=headers)
        assert answer.status == status, (path, answer.data[:200])
        assert meter.seconds() - before < expansion.MAX_SECONDS, path


def test_json_of_too_many_points_is_refused(server):
    """Six million took 6.6 s; as binary columns they take a fraction of one."""
    times = np.arange(T0, T0 + 2_500_001, dtype=np.uint64)
    resource = {"service.name": "json", "tensormeter.run.id": "long"}
    assert server.post("/v1/metrics", encode_metrics([Batch(resource, [Gauge("m", times, times * 0.5)])])).status == 200
    query = {"runs": ["json/long"], "metrics": ["m"], "x": "time", "max_points": 0}
    series = f"{server.url}/api/v1/runs/long/series?project=json&metric=m&x=time"
    for accept in ("application/json", "application/vnd.tensormeter.columns"):
        for answer in (
            server.http.request("GET", series, headers={"Accept": accept}),
            server.http.request("POST", f"{server.url}/api/v1/query", json=query, headers={"Accept": accept}),
        ):
            if accept == "application/json":
                assert answer.status == 413
                error = json.loads(answer.data)["error"]
                assert error["code"] == "too_many_points"
                assert "Request the binary form" in error["message"]
            else:
                assert answer.status == 200
                assert len(answer.data) > 16 * len(times)
    answer = server.http.request("GET", f"{series}&stop={T0 + 1_999_900}")
    assert answer.status == 200
    assert len(json.loads(answer.data)["series"][0]["value"]) == 1_999_900


def test_a_read_that_takes_too_long_says_what_to_ask():
    """An answer may be begun twice: the processor times of both are added up."""
    calls = []

    def work(most: int, budget: CpuBudget) -> BufferedResponse:
        calls.append(most)
        began = time.thread_time()
        while time.thread_time() - began < 0.6 * MAX_SECONDS:
            budget.check_now()
        raise TooManyPointsError("more")

    async def ask() -> None:
        request = Request({"type": "http", "client": None}, anyio.sleep_forever)
        request.state.access = Access("test")
        await ResponseLimiter().points(request, ApiThreads(lambda: None).run_checked, work)

    with pytest.raises(TooManyPointsError, match=r"CPU time; request fewer metrics, a single process"):
        run_coroutine(ask)
    assert len(calls) == 2


def test_a_read_ends_when_the_client_has_gone():
    def work(most: int, budget: CpuBudget) -> BufferedResponse:
        while True:
            budget.check()

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def ask() -> None:
        request = Request({"type": "http", "client": None}, gone)
        request.state.access = Access("test")
        await ResponseLimiter().points(request, ApiThreads(lambda: None).run_checked, work)

    with pytest.raises(ClientDisconnect):
        run_coroutine(ask)


def test_an_answer_of_many_large_events_is_divided_into_pages(server_on_each, make):
    """Ten thousand events of a megabyte each would be an answer of ten gigabytes."""
    server = server_on_each
    for number in range(36):
        server.events(make.resource("large", project="answers"), Event("text", T0 + number, "x" * 1_000_000))
    page = server.get("/api/v1/runs/large/events", project="answers")
    sizes = [len(page["events"])]
    while page["next"]:
        page = server.get("/api/v1/runs/large/events", project="answers", before=page["next"])
        sizes.append(len(page["events"]))
    assert sum(sizes) == 36
    assert max(sizes) < 36


def test_work_ends_when_the_client_has_gone(start, eventually):
    """The request takes seconds, and its client leaves after the last byte of it."""
    server = start("--access-log")
    body = next(body for body in expansion.allowed() if body.name == "series by attributes")
    address = urlsplit(server.url)
    head = f"POST {body.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {len(body.data)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body.data)
    eventually(lambda: body.path in server.stderr)
    assert server.get("/api/v1/runs")["total"] == 0
    assert "Traceback" not in server.stderr


def test_the_agent_divides_what_is_refused_and_every_value_arrives_once(server, tmp_path, eventually, make):
    """Twice as many separate points as one request may have, in two rows; and more log records than one may have.

    About 30 s: the limits are those of a real server, and every value is stored, folded and read back.
    """
    series = [
        Gauge(f"metric/{number}", np.array([T0, T0 + 1], np.uint64), np.array([number, -number], np.int64))
        for number in range(MAX_ELEMENTS["separate points"] + 1000)
    ]
    metrics = encode_metrics([Batch(make.resource("divided", project="divided"), series)])
    records = MAX_ELEMENTS["log records"] + 1000
    events = [Event("line", T0 + number, body=number) for number in range(records)]
    logs = encode_events(make.resource("divided", project="divided"), events)
    with pytest.raises(TooManyElementsError):
        check_metrics(metrics)
    with pytest.raises(TooManyElementsError):
        check_logs(logs)
    spool = Spool(tmp_path / "spool.sqlite")
    requests = [
        Encoded("metrics", gzip.compress(metrics), 2 * len(series)),
        Encoded("logs", gzip.compress(logs), records),
    ]
    spool.put(requests, ["experiment"], "p", {}, started=True, ended=False)
    delivery = Delivery("experiment", tmp_path / "spool.sqlite", Settings(endpoint=server.url), lambda: None)
    delivery.start()
    try:
        eventually(lambda: spool.pending() == 0)
    finally:
        delivery.stop(30)
    assert spool.quarantined_items() == 0
    spool.close()
    run = server.get("/api/v1/runs/divided", project="divided")
    assert run["points"] == 2 * len(series)
    assert {summary["count"] for summary in run["summary"].values()} == {2}
    assert run["summary"]["metric/7"]["last"] == -7
    stored_events = server.get("/api/v1/runs/divided/events", project="divided", name="line", limit=10_000)["events"]
    assert [event["body"] for event in stored_events] == [*range(records - 1, records - 10_001, -1)]


def test_a_body_in_tiny_pieces_is_refused(start):
    """Chunks of one byte: each costs as much as one of a kilobyte."""
    server = start()
    address = urlsplit(server.url)
    head = f"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + b"400\r\n" + bytes(1024) + b"\r\n")
        with contextlib.suppress(OSError):  # the server closes while more is being sent
            for _ in range(1000):
                connection.sendall(b"1\r\n\0\r\n" * 1000)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert server.get("/healthz") == {"status": "ok"}


def _wrapped(number: int, content: bytes) -> bytes:
    return expansion.varint(number << 3 | 2) + expansion.varint(len(content)) + content
