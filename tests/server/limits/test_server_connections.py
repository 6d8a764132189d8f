"""Connections that clients and networks break, and requests that ask for too much."""

import concurrent.futures
import re
import socket
import struct
import threading

import pytest

from support.servers import read_to_end
from tensormeter.otlp.encode import encode_metrics
from tensormeter.server.receivers.request_body import BodyReader

T0 = 1_750_000_000_000_000_000


def request_of(body, **headers):
    named = {"Host": "localhost", "Content_Type": "application/x-protobuf", "Content_Length": len(body)} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"POST /v1/metrics HTTP/1.1\r\n{lines}\r\n".encode() + body


def test_a_client_that_closes_before_the_answer_makes_no_duplicate(start_on_each, make):
    server = start_on_each()
    body = encode_metrics([make.rows("half-closed", [(T0, 0, {"v": 1.0})])])
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(request_of(body, Tensormeter_Batch_Id="half"))
            connection.shutdown(socket.SHUT_WR)
            assert read_to_end(connection)[:13] in (b"", b"HTTP/1.1 200 ")
    assert server.post("/v1/metrics", body, Tensormeter_Batch_Id="half").status == 200
    assert server.get("/api/v1/runs/half-closed")["points"] == 2


def test_a_reset_after_the_commit_makes_no_duplicate(start_on_each, make, eventually):
    server = start_on_each()
    bodies = [encode_metrics([make.rows("reset", [(T0 + i, i, {"v": float(i)})])]) for i in range(5)]
    for i, body in enumerate(bodies):
        with server.connect() as connection:
            connection.sendall(request_of(body, Tensormeter_Batch_Id=f"reset-{i}"))
            eventually(lambda i=i: server.has_batch(f"reset-{i}"))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for i, body in enumerate(bodies):
        assert server.post("/v1/metrics", body, Tensormeter_Batch_Id=f"reset-{i}").status == 200
    (series,) = server.get("/api/v1/runs/reset/series", metric="v")["series"]
    assert series["value"] == [float(i) for i in range(5)]
    assert server.get("/api/v1/runs/reset")["points"] == 10
    assert server.stop() == 0
    assert server.stderr == ""


@pytest.mark.parametrize(
    "path",
    [
        "/v1/metrics/",
        "/v1/nothing",
        "/api/v1/runs/",
        "/api/v1/",
        "//evil.example/",
        "/healthz/",
        "/static",
        "/static/..%2f..%2fconfig.py",
        "/static/%00",
    ],
)
@pytest.mark.parametrize("accept", ["text/html", "*/*"])
def test_nothing_redirects_and_no_error_is_html(server, path, accept):
    """A proxy's page with status 200 is what a client must not take for an answer; ours never look like it."""
    for method in ("GET", "POST"):
        answer = server.http.request(
            method,
            f"{server.url}{path}",
            headers={"Accept": accept},
            redirect=False,
            body=b"" if method == "POST" else None,
        )
        assert answer.status in (404, 405)
        assert answer.headers["Content-Type"] in ("application/json", "application/x-protobuf")
        assert "Location" not in answer.headers


def test_more_bodies_at_once_than_memory_says_when_to_come_again(monkeypatch):
    """503 with a `Retry-After` of whole seconds, which every client understands."""
    from starlette.exceptions import HTTPException

    bodies = BodyReader(100)
    bodies._buffered_bytes = 399

    class Request:
        headers = {}  # noqa: RUF012

        async def stream(self):
            yield b"xx"

    import anyio

    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(HTTPException) as caught:
        pool.submit(anyio.run, bodies.read, Request()).result(300)
    assert caught.value.status_code == 503
    assert re.fullmatch(r"\d+", caught.value.headers["Retry-After"])
    assert bodies._buffered_bytes == 399


def test_a_connection_on_which_no_request_comes_is_closed(start):
    """Slowloris: each would hold a descriptor for ever."""
    server = start("--header-timeout", "5")
    with server.connect() as silent, server.connect() as halting, server.connect() as endless:
        endless.sendall(request_of(b"", Content_Length=1 << 40))  # answered at once, but the body goes on
        assert endless.recv(65536).startswith(b"HTTP/1.1 413 ")
        endless.sendall(b"x")
        halting.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-")
        assert [read_to_end(connection).partition(b"\r")[0] for connection in (silent, halting)] == [
            b"HTTP/1.1 408 Request Timeout"
        ] * 2
        read_to_end(endless)  # the rest of the answer, and then it ends
    assert server.get("/healthz") == {"status": "ok"}
    assert server.stop() == 0
    assert server.stderr == ""


SQL = [
    "x' OR '1'='1",
    "'; DROP TABLE run; --",
    'v"; DELETE FROM chunk; --',
    "v) UNION SELECT sql FROM sqlite_master --",
    "%",
    "_",
    "\\",
    "\0",
]


@pytest.mark.parametrize("text", SQL)
def test_sql_in_names_finds_nothing_and_changes_nothing(server_on_each, make, text):
    server = server_on_each
    assert server.metrics(make.rows("sql", [(T0, 0, {"v": 1.0})]), batch_id="sql").status == 200
    assert "sql" not in [run["id"] for run in server.get("/api/v1/runs", project=text)["runs"]]
    assert server.ask("/api/v1/runs", filter=text)[0] == 400
    assert server.ask("/api/v1/runs", sort=text)[0] == 400
    for sort in (f"config.{text}", f"summary.{text}.last"):
        assert server.get("/api/v1/runs", sort=f"`{sort}`", filter=f"id = 'sql' and `{sort}` = null")["total"] == 1
    assert server.get("/api/v1/runs/sql/series", metric=text)["series"] == []
    assert server.get("/api/v1/runs/sql/series", metric="v", process=text)["series"] == []
    assert server.get("/api/v1/runs/sql/events", name=text, key=text)["events"] == []
    assert server.get("/api/v1/runs/sql/events", name=f"{text}*")["events"] == []
    assert server.query("sql", metrics=[text])["series"] == []
    assert server.query("sql", metrics=["v"], x=f"metric:{text}")["series"] == []
    assert server.ask("/api/v1/runs/sql", project=text)[0] == 404
    assert server.get("/api/v1/runs/sql")["points"] == 2


def test_ingest_goes_on_during_queries_of_all_data(start, make):
    """Queries and ingest have separate threads: more queries than threads do not delay ingest."""
    server = start()
    for i in range(4):
        rows = [(T0 + j, j, {f"m{k}": float(j) for k in range(10)}) for j in range(i * 2000, (i + 1) * 2000)]
        assert server.metrics(make.rows("greedy", rows)).status == 200
    stop = threading.Event()

    def ask():
        asked = 0
        while not stop.is_set() or not asked:
            assert len(server.query("greedy", metrics=[f"m{k}" for k in range(10)], max_points=0)["series"]) == 10
            asked += 1
        return asked

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            for i in range(20):
                assert (
                    server.metrics(make.rows("fed", [(T0 + i, i, {"v": float(i)})]), batch_id=f"fed-{i}").status == 200
                )
        finally:
            stop.set()
        assert all(future.result() for future in asking)
    assert server.get("/api/v1/runs/fed")["points"] == 40
