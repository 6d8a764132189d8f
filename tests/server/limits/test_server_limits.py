"""The cost of one client: connections, streams, and answers that it does not read."""

import contextlib
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from support.sockets import readable
from tensormeter.otlp.batch import Batch, Gauge

T0 = 1_750_000_000_000_000_000
COLUMNS = "application/vnd.tensormeter.columns"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = b"GET /api/v1/stream?runs=none HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(server, source="127.0.0.1", *, buffer=0):
    """A connection from an address of loopback, which has as many as there are machines elsewhere."""
    parts = urlsplit(server.url)
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(60)
    connection.bind((source, 0))
    connection.connect((parts.hostname, parts.port))
    return connection


def everything(connection):
    """The bytes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def healthy(server, source="127.0.0.1"):
    """Whether a new connection from this address is served."""
    with connect(server, source) as connection:
        connection.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return everything(connection).startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def strict(tmp_path_factory, server_class):
    server = server_class(tmp_path_factory.mktemp("strict") / "data")
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.stderr
    assert server.stderr.count("refused a request from 127.0.0.1") == 1  # a minute
    assert server.stderr.count("invalid HTTP request from 127.0.0.1") == 1


@pytest.mark.parametrize(
    "head",
    [
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 50",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 0x5",
        b"Content-Length: 5 5",
        b"Content-Length:",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"X-Long: one\r\n two\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked\nContent-Length: 5",
    ],
)
def test_a_request_whose_length_is_ambiguous_is_the_last_one_of_its_connection(strict, head):
    """RFC 9112, 6.3: nothing that follows is taken for a further request."""
    with connect(strict) as connection:
        connection.sendall(POST + head + b"\r\n\r\n0\r\n\r\n" + HEALTH)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_transfer_encoding_in_http_1_0_is_refused(strict):
    with connect(strict) as connection:
        connection.sendall(POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH)
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("size", "status"), [(1 << 16, 200), ((1 << 16) + 1, 400)])
def test_the_size_of_headers_is_limited_even_if_they_are_complete(strict, size, status):
    start, end = HEALTH.removesuffix(b"\r\n") + b"Connection: close\r\nX-Long: ", b"\r\n\r\n"
    with connect(strict) as connection:
        connection.sendall(start + b"x" * (size - len(start + end)) + end)
        assert everything(connection).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 100_000])
def test_what_is_no_http_is_refused_and_closed(strict, data):
    with connect(strict) as connection:
        connection.sendall(data)
        assert everything(connection)[:13] in (b"HTTP/1.1 400 ", b"")  # b"": reset, as there was more to read


def test_a_body_that_is_malformed_after_its_answer_ends_the_connection(strict):
    head = b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(strict) as connection:
        connection.sendall(head + b"1\r\n")
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 415 ")
        connection.sendall(b"xx\r\n" + HEALTH)
        assert b"HTTP/1.1" not in everything(connection)


@pytest.mark.parametrize(
    "head", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
def test_requests_may_follow_each_other(strict, head):
    with connect(strict) as connection:
        connection.sendall(POST + head + HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert everything(connection).count(b"HTTP/1.1 200 ") == 2


def test_clients_of_grpc_are_told_what_to_do_in_one_line(start, eventually):
    server = start()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for _ in range(5):
        with connect(server) as whole, connect(server) as split:
            whole.sendall(preface + b"\0\0\0\4\0\0\0\0\0")
            split.sendall(preface[:10])
            assert b"gRPC is not supported" in everything(whole)
            split.sendall(preface[10:])
            assert everything(split).startswith(b"HTTP/1.1 505 ")
    with connect(server) as upgrading:  # as HTTP/2 clients do that try: they get HTTP/1.1
        upgrading.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n\r\n"))
        assert everything(upgrading).startswith(b"HTTP/1.1 200 ")
    assert server.stop() == 0
    (line,) = server.stderr.splitlines()
    assert "gRPC is not supported; use OTLP/HTTP on /v1/metrics" in line


def test_an_idle_connection_outlives_the_pause_of_slow_proxies(strict):
    """Other servers close after five seconds, when the next request may be on its way."""
    with connect(strict) as connection:
        connection.sendall(HEALTH)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        while readable([connection], 6):
            assert connection.recv(65536)  # the rest of the answer
        connection.sendall(HEALTH)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def send_half_a_head(connection):
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")


def send_nothing(connection):
    pass


def stay_idle(connection):
    connection.sendall(HEALTH)
    answer = b""
    while b'"ok"' not in answer:
        part = connection.recv(65536)
        assert part
        answer += part
    assert answer.startswith(b"HTTP/1.1 200 ")


def send_half_a_body(connection):
    connection.sendall(POST + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n{")
    assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")  # its head is read, and the server waits for the body


def send_half_a_body_that_is_refused(connection):
    connection.sendall(b"POST /v1/metrics HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 1000\r\n\r\n{")
    assert connection.recv(65536).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    "attack", [send_half_a_head, send_nothing, stay_idle, send_half_a_body, send_half_a_body_that_is_refused]
)
def test_connections_of_one_address_do_not_keep_others_out(start, eventually, attack):
    """The oldest one that waits for its client gives way, of the address that has the most; others keep theirs."""
    server = start("--max-connections", "20")
    with contextlib.ExitStack() as connections:
        mine = connections.enter_context(connect(server))
        stay_idle(mine)
        for _ in range(30):
            connection = connections.enter_context(connect(server, "127.0.0.2"))
            with contextlib.suppress(AssertionError, ConnectionError):  # refused: the others are too young to give way
                attack(connection)
        with contextlib.suppress(ConnectionError):
            healthy(server, "127.0.0.2")  # connections are accepted in order: all of the attack have been
        stay_idle(mine)
        eventually(lambda: healthy(server), 30)
        assert all(healthy(server) for _ in range(30))


def test_unread_answers_that_need_no_token_do_not_keep_others_out(start, eventually):
    server = start("--max-connections", "20", environment={"TENSORMETER_TOKEN": "secret"})
    page = server.http.request("GET", server.url, headers={"Accept": "text/html"}).data.decode()
    (script,) = [part.partition('"')[0] for part in page.split('src="') if part.startswith("/static/")][:1]
    server.http.clear()
    request = f"GET {script} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20
    with contextlib.ExitStack() as connections:
        for _ in range(30):
            connection = connections.enter_context(connect(server, "127.0.0.2", buffer=2048))
            connection.sendall(request)
        eventually(lambda: healthy(server), 30)


def read_of_run(run, accept=COLUMNS):
    body = f'{{"runs":["{run}"],"metrics":["v"],"x":"time","max_points":0}}'.encode()
    return (
        f"POST /api/v1/query HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def store_points(server, make, run, points):
    for first in range(0, points, 250_000):
        times = T0 + 1000 * np.arange(first, first + 250_000)
        gauge = Gauge("v", times.astype(np.uint64), np.random.default_rng(first).standard_normal(250_000))
        assert server.metrics(Batch(make.resource(run), [gauge])).status == 200


def compacted(folder):
    """The folder of a stopped server, whose points are all in segments then."""
    command = [sys.executable, "-m", "tensormeter", "compact", "--data", folder]
    assert subprocess.run(command, check=False, capture_output=True, timeout=300).returncode == 0
    return folder


def has_answer(connection):
    """Whether an answer has begun, or the connection has ended; reads nothing."""
    if not readable([connection]):
        return False
    with contextlib.suppress(OSError):
        connection.recv(1, socket.MSG_PEEK)
    return True


@pytest.mark.parametrize("accept", [COLUMNS, "application/json"])
def test_unread_answers_cost_little_memory_and_are_given_up(start, make, eventually, accept):
    """Takes some time: each of ten large answers stays unread for a few seconds."""
    server = start("--send-timeout", "4")
    store_points(server, make, "large", 2_000_000)
    assert server.stop() == 0
    server = start("--send-timeout", "4", folder=compacted(server.folder))  # which does nothing else meanwhile
    assert len(server.query("large", metrics=["v"], x="time", max_points=100)["series"]) == 1
    process, most = psutil.Process(server.process.pid), 0
    before = process.memory_info().rss
    with contextlib.ExitStack() as connections:
        unread = [connections.enter_context(connect(server, "127.0.0.2", buffer=4096)) for _ in range(10)]
        for connection in unread:
            connection.sendall(read_of_run("large", accept))

        def answered():
            nonlocal most
            most = max(most, process.memory_info().rss - before)
            return all(map(has_answer, unread))

        eventually(answered, 120)
        # The same client goes on looking at charts.
        chart = connections.enter_context(connect(server, "127.0.0.2"))
        body = b'{"runs":["large"],"metrics":["v"],"x":"time","max_points":9000}'
        head = f"POST /api/v1/query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        chart.sendall(head.encode() + body)
        answer = everything(chart)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert len(answer) > 100_000
        # Another client is served meanwhile, also with as large an answer.
        other = connections.enter_context(connect(server))
        other.sendall(read_of_run("large").replace(b"Host:", b"Connection: close\r\nHost:"))
        assert len(everything(other)) > 32_000_000
        eventually(lambda: "the client did not read from a response for 4 s" in server.stderr, 60)
    assert most < 200e6, f"{most / 1e6:.0f} MB"


def test_a_client_that_reads_slowly_gets_its_whole_answer(start, make):
    server = start("--send-timeout", "1")
    store_points(server, make, "slow", 500_000)
    pace = threading.Event()
    size = 0
    with connect(server, buffer=4096) as connection:
        connection.sendall(read_of_run("slow").replace(b"Host:", b"Connection: close\r\nHost:"))
        for _ in range(60):  # thrice the timeout
            size += len(connection.recv(4096))
            pace.wait(0.05)
        size += len(everything(connection))
    assert size > 8_000_000
    assert server.stderr == ""


def test_a_stream_that_is_not_read_is_given_up(start, make, eventually):
    server = start("--send-timeout", "1")
    names = {f"metric/{'x' * 80}/{index}": 1.0 for index in range(2000)}
    sent = 0
    with connect(server, buffer=4096) as connection:
        connection.sendall(STREAM.replace(b"none", b"wide&after=0.0"))

        def given_up():
            nonlocal sent
            assert server.metrics(make.rows("wide", [(T0 + sent, sent, names)])).status == 200
            sent += 1
            return "the client did not read from a response" in server.stderr

        eventually(given_up, 120)


def status_of(connection):
    with contextlib.suppress(ConnectionError):
        return connection.recv(12)[9:]
    return b""


def test_streams_that_are_opened_at_once_are_counted(start, eventually):
    server = start()
    with contextlib.ExitStack() as connections:
        streams = [connections.enter_context(connect(server)) for _ in range(300)]
        for stream in streams:
            stream.sendall(STREAM)
        statuses = [status_of(stream) for stream in streams]
        assert (statuses.count(b"200"), statuses.count(b"503")) == (256, 44)
        # Another client takes a place from the one that has them all, who gets it back no more.
        with connect(server, "127.0.0.2") as other, connect(server) as again:
            other.sendall(STREAM)
            assert status_of(other) == b"200"
            again.sendall(STREAM)
            assert status_of(again) == b"503"

        def ended():
            accepted = [stream for stream, status in zip(streams, statuses, strict=True) if status == b"200"]
            return any(not stream.recv(65536) for stream in readable(accepted))

        eventually(ended, 30)

    def opened():
        with connect(server) as stream:
            stream.sendall(STREAM)
            return status_of(stream) == b"200"

    eventually(opened, 30)


def test_streams_whose_clients_leave_at_once_leave_their_places(start, eventually):
    server = start()
    for _ in range(300):
        with connect(server) as stream:
            stream.sendall(STREAM)

    def all_open():
        with contextlib.ExitStack() as connections:
            streams = [connections.enter_context(connect(server)) for _ in range(256)]
            for stream in streams:
                stream.sendall(STREAM)
            return [status_of(stream) for stream in streams] == [b"200"] * 256

    eventually(all_open, 60)


@pytest.mark.parametrize(("path", "signal"), [("/v1/traces", "traces"), ("/v1development/profiles", "profiles")])
def test_signals_that_are_not_stored_are_refused_with_the_reason(start, path, signal):
    server = start()
    answers = [
        server.post(path, b"\x0a\x00", Content_Type=kind) for kind in ("application/x-protobuf", "application/json")
    ]
    assert [answer.status for answer in answers] == [404, 404]
    binary, text = answers
    assert binary.headers["Content-Type"] == "application/x-protobuf"
    assert binary.data.startswith(b"\x08\x05\x12")  # google.rpc.Status: NOT_FOUND, and a message
    assert f"this server does not store {signal}".encode() in binary.data
    assert text.json()["code"] == 5
    assert text.json()["message"].startswith(f"this server does not store {signal}")
    assert server.stop() == 0
    assert server.stderr.count("\n") == 1
    assert f"sent {signal}, which the server does not store" in server.stderr
