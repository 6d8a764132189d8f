"""Further faults of the server; docs/reliability.md and docs/server.md list all of them."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import anyio
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from starlette.exceptions import HTTPException

from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.api import Shutdown, api_routes
from tensormeter.server.api.openapi import openapi_document
from tensormeter.server.receivers.request_body import BodyReader
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.server.viewers import Viewers

T0 = 1_750_000_000_000_000_000
YEAR = 365 * 86400 * 10**9


def head(length):
    return (
        "POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_content_length_that_is_wrong(start, make):
    server = start()
    body = encode_metrics([make.rows("wrong-length", [(T0, 0, {"v": 1.0})])])
    with server.connect() as connection:
        connection.sendall(head(len(body) + 10) + body)  # and away
    with server.connect() as connection:
        connection.sendall(head(len(body) - 10) + body)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400 ")
    with server.connect() as connection:
        connection.sendall(head("-5") + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert server.ask("/api/v1/runs/wrong-length")[0] == 404
    assert server.get("/healthz") == {"status": "ok"}


def test_a_body_that_comes_too_slowly(monkeypatch):
    monkeypatch.setattr("tensormeter.server.receivers.request_body.READ_TIMEOUT", 0.05)
    bodies = BodyReader(1000)

    class Request:
        def __init__(self):
            self.headers = {}

        async def stream(self):
            yield b"x"
            await anyio.sleep_forever()

    # On a thread, because the browser of other tests may have a loop on this one.
    with ThreadPoolExecutor(1) as executor, pytest.raises(HTTPException) as caught:
        executor.submit(anyio.run, bodies.read, Request()).result(300)
    assert caught.value.status_code == 408
    assert bodies._buffered_bytes == 0


def test_a_name_of_a_megabyte_is_refused_and_counted(server_on_each, make):
    server = server_on_each
    answer = server.metrics(make.rows("long-name", [(T0, 0, {"v": 1.0, "n" * (1 << 20): 1.0})]))
    partial = ExportMetricsServiceResponse.FromString(answer.data).partial_success
    assert (partial.rejected_data_points, len(partial.error_message) < 1000) == (1, True)
    assert server.get("/api/v1/runs/long-name")["points"] == 2


def test_clocks_that_jump(server_on_each, make):
    """An hour ahead, ten years back: every point is kept, and the state goes by the server's own clock."""
    server = server_on_each
    times = [T0, T0 + 3600 * 10**9, T0 - 10 * YEAR, T0 + 10 * YEAR]
    for step, time in enumerate(times):
        server.metrics(make.rows("jumps", [(time, step, {"v": float(step)})]))
    (series,) = server.query("jumps", metrics=["v"])["series"]
    assert (series["x"], series["y"]) == ([0, 1, 2, 3], [0.0, 1.0, 2.0, 3.0])
    run = server.get("/api/v1/runs/jumps")
    assert (run["state"], run["summary"]["v"]["last"]) == ("running", 3.0)


def test_fields_of_a_newer_protocol_are_passed_over(server_on_each, make):
    server = server_on_each
    body = encode_metrics([make.rows("newer", [(T0, 0, {"v": 1.0})])])
    unknown = bytes((15 << 3 | 2, 3)) + b"new" + bytes((14 << 3, 1))
    answer = server.post("/v1/metrics", body + unknown, Tensormeter_New_Header="x")
    assert (answer.status, answer.data) == (200, b"")
    assert server.get("/api/v1/runs/newer", new_parameter=1)["points"] == 2


def test_damage_is_said_by_health_and_does_not_stop_ingest(start, make):
    server = start()
    server.metrics(make.rows("damaged", [(T0 + i, i, {"v": float(i)}) for i in range(10)]))
    assert server.stop() == 0
    with closing(sqlite3.connect(server.folder / "tensormeter.db")) as database:
        database.execute("UPDATE chunk SET words = zeroblob(20)")
        database.commit()
    server = start()
    assert server.get("/healthz") == {"status": "ok"}
    status, document = server.ask("/api/v1/runs/damaged/series", metric="v")
    assert (status, document["error"]["code"]) == (500, "store_damaged")
    status, document = server.ask("/healthz")
    assert (status, "damaged" in document["error"]["message"]) == (503, True)
    assert server.metrics(make.rows("other", [(T0, 0, {"v": 1.0})])).status == 200
    assert server.get("/api/v1/runs/other/series", metric="v")["series"][0]["value"] == [1.0]


def test_the_openapi_document_has_every_route(server, tmp_path):
    document = server.get("/api/v1/openapi.json")
    assert document == json.loads(json.dumps(openapi_document()))
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    store = SqliteStore(tmp_path / "store")
    routes = api_routes(store, Shutdown(), Viewers())
    store.close()
    assert described == {(route.path, method) for route in routes for method in route.methods - {"HEAD"}}
    references = set()

    def walk(node):
        if isinstance(node, dict):
            references.update(value for key, value in node.items() if key == "$ref")
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert references == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
