"""The needs of operators of a server: TLS, proxies, limits on connections, logs."""

import contextlib
import json
import ssl
import sys

import numpy as np
import pytest
import urllib3

import tensormeter
from support.certificates import write_certificate
from support.servers import read_to_end
from support.sockets import readable
from tensormeter.errors import SettingsError, TensormeterError
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.server import ServerConfig
from tensormeter.server.auth.tokens import TokenFile

TOKEN = "s3cret-token-of-the-test"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Paths of a certificate, its key, and another key with a passphrase."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem", folder / "locked.pem"
    write_certificate(folder / "other.pem", files[2], passphrase=b"passphrase")
    write_certificate(*files[:2])
    return files


def test_https(start, tls, make, monkeypatch):
    certificate, key, _ = tls
    server = start("--tls-cert", str(certificate), "--tls-key", str(key))
    assert server.url.startswith("https://127.0.0.1:")
    with pytest.raises(TensormeterError, match="SSLError"):
        tensormeter.Client(server.url).projects()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.http = urllib3.PoolManager(retries=False, timeout=300)
    assert server.metrics(make.rows("safe", [(10**18, 0, {"v": 1.0})])).status == 200
    (series,) = tensormeter.Client(server.url).run("safe").series("v")
    assert series.y.tolist() == [1.0]
    with server.connect() as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in read_to_end(plain)
    assert server.stop() == 0


def shown(server, name=None):
    """The certificate that a new connection gets, in PEM."""
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with server.connect() as plain, anyone.wrap_socket(plain, server_hostname=name) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True))


def test_a_new_certificate_is_for_new_connections(start, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(certificate, key)
    first = certificate.read_text()
    server = start("--tls-cert", str(certificate), "--tls-key", str(key))
    trusting = ssl.create_default_context(cafile=certificate)
    with server.connect() as plain, trusting.wrap_socket(plain, server_hostname="localhost") as old:
        assert shown(server) == first
        write_certificate(certificate, key)
        second = certificate.read_text()
        assert second != first
        assert [shown(server, name) for name in (None, "localhost", "elsewhere.example")] == [second] * 3
        assert server.stderr == ""
        old.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_to_end(old).startswith(b"HTTP/1.1 200 ")
    # What cannot be used is said once, and changes nothing.
    third, of_third = tmp_path / "third.pem", tmp_path / "key-of-third.pem"
    write_certificate(third, of_third)
    for warnings, spoil in enumerate(
        [
            lambda: certificate.write_text("no certificate"),
            certificate.unlink,
            lambda: certificate.write_bytes(third.read_bytes()),  # the key is still of the one before
        ],
        1,
    ):
        spoil()
        assert [shown(server), shown(server)] == [second] * 2
        assert server.stderr.count("are not a certificate and its key") == warnings
        assert server.stderr.count("\n") == warnings
    of_third.replace(key)
    assert shown(server, "localhost") == third.read_text()
    assert server.stop() == 0
    assert server.stderr.count("\n") == 3


def test_tls_files_that_cannot_be_used(tls, tmp_path):
    certificate, key, locked = tls
    with pytest.raises(SettingsError, match="set both or neither"):
        ServerConfig(directory=tmp_path, tls_cert=certificate)
    for pair in [(key, key), (certificate, certificate), (tmp_path / "none", key), (certificate, tmp_path / "none")]:
        with pytest.raises(SettingsError, match="are not a certificate and its key"):
            ServerConfig(directory=tmp_path, tls_cert=pair[0], tls_key=pair[1])
    with pytest.raises(SettingsError, match="has a passphrase"):
        ServerConfig(directory=tmp_path, tls_cert=certificate, tls_key=locked)


@pytest.mark.parametrize(
    "changes",
    [
        {"forwarded_allow_ips": "*"},
        {"max_connections": 0},
        {"header_timeout": 0},
        {"header_timeout": 3600},
        {"header_timeout": float("nan")},
    ],
)
def test_limits_that_are_none(tmp_path, changes):
    with pytest.raises(SettingsError, match=next(iter(changes))):
        ServerConfig(directory=tmp_path, **changes)


def test_headers_that_do_not_end(start):
    server = start("--header-timeout", "0.5")
    with server.connect() as silent, server.connect() as half:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        assert read_to_end(half).startswith(b"HTTP/1.1 408 ")
        assert read_to_end(silent).startswith(b"HTTP/1.1 408 ")
    with server.connect() as trickling:
        trickling.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        trickling.settimeout(0.05)
        answer = b""
        while not answer:
            try:
                answer = trickling.recv(65536)
            except TimeoutError:
                trickling.sendall(b"x")
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_the_headers_of_a_second_request_do_not_end(start):
    server = start("--header-timeout", "0.5")
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connection.recv(65536)
        while b'"ok"' not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost")
        assert read_to_end(connection).startswith(b"HTTP/1.1 408 ")


def test_a_request_may_take_longer_than_its_headers(start, eventually):
    """The deadline is that of the headers: a stream, and a body that is still coming, go on."""
    server = start("--header-timeout", "0.5")
    with server.connect() as stream, server.connect() as silent:
        stream.sendall(b"GET /api/v1/stream?runs=none HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stream.recv(65536).startswith(b"HTTP/1.1 200 ")
        with server.connect() as slow:
            slow.sendall(
                b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
                b"Content-Type: application/x-protobuf\r\nConnection: close\r\n\r\n"
            )
            read_to_end(silent)  # the deadline of all three is over
            slow.sendall(b"\x00")
            assert read_to_end(slow).startswith(b"HTTP/1.1 400 ")
        stream.setblocking(False)  # it goes on, after any output so far
        with contextlib.suppress(BlockingIOError):
            assert stream.recv(65536)


def test_more_requests_than_connections_are_allowed(start, eventually):
    """Connections whose requests are being answered keep their places; a further one is refused at once."""
    server = start("--max-connections", "3")
    connections = [server.connect() for _ in range(3)]
    try:
        for stream in connections:
            stream.sendall(b"GET /api/v1/stream?runs=none HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert stream.recv(65536).startswith(b"HTTP/1.1 200 ")
        with server.connect() as further:
            assert read_to_end(further).startswith(b"HTTP/1.1 503 ")
        connections.pop().close()

        def answered():
            with server.connect() as further:
                further.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return read_to_end(further).startswith(b"HTTP/1.1 200 ")

        eventually(answered)
    finally:
        for connection in connections:
            connection.close()


def test_fewer_open_files_than_connections(start, tmp_path, monkeypatch, eventually):
    """Connections give way before the process has no descriptor left, and the log says what bounds them."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n 200 && exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    server = start()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(server.connect())

        def answered():  # while a busy server closes connections, all descriptors may be in use
            with server.connect() as further:
                further.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return read_to_end(further).startswith(b"HTTP/1.1 200 ")

        eventually(answered)
    assert server.stop() == 0
    line = server.stderr.splitlines()[0]
    assert "the system allows 200 open files; the server accepts 100 connections instead of 2048" in line


def test_handshakes_that_do_not_go_on_give_way(start, tls, eventually):
    """They count as connections, also the first byte and none."""
    certificate, key, _ = tls
    server = start("--tls-cert", str(certificate), "--tls-key", str(key), "--max-connections", "10")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(30)]
        for connection in connections[::2]:
            connection.sendall(b"\x16")
        assert shown(server) == certificate.read_text()
        anyone = ssl.create_default_context(cafile=certificate)
        plain = stack.enter_context(server.connect())
        with anyone.wrap_socket(plain, server_hostname="localhost") as encrypted:
            encrypted.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert read_to_end(encrypted).startswith(b"HTTP/1.1 200 ")

        def closed():
            return len(readable(connections)) >= 20

        eventually(closed)
    assert server.stop() == 0
    assert server.stderr == ""


def test_an_answer_that_is_not_read_is_given_up_over_tls_too(start, tls, make, eventually):
    certificate, key, _ = tls
    server = start("--tls-cert", str(certificate), "--tls-key", str(key), "--send-timeout", "1")
    server.http = urllib3.PoolManager(retries=False, timeout=300, ca_certs=str(certificate))
    times = 10**18 + np.arange(400_000)
    gauge = Gauge("v", times.astype(np.uint64), np.random.default_rng(0).standard_normal(400_000))
    assert server.metrics(Batch(make.resource("large"), [gauge])).status == 200
    anyone = ssl.create_default_context(cafile=certificate)
    with server.connect() as plain, anyone.wrap_socket(plain, server_hostname="localhost") as unread:
        request = (
            b"GET /api/v1/runs/large/series?metric=v&x=time HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        unread.sendall(request)
        eventually(lambda: "the client did not read from a response for 1 s" in server.stderr, 60)
    with server.connect() as plain, anyone.wrap_socket(plain, server_hostname="localhost") as read:
        read.sendall(request)
        assert len(read_to_end(read)) > 8_000_000


def test_a_handshake_that_takes_too_long_is_ended(start, tls):
    certificate, key, _ = tls
    server = start("--tls-cert", str(certificate), "--tls-key", str(key), "--header-timeout", "0.5")
    with server.connect() as silent, contextlib.suppress(ConnectionResetError):
        assert read_to_end(silent) == b""
    with server.connect() as waiting:  # does not keep the server from stopping
        waiting.sendall(b"\x16")
        assert server.stop() == 0
    assert server.stderr == ""


def log_of(server):
    return [json.loads(line) for line in server.stderr.splitlines()]


def test_logs_in_json(start, eventually):
    server = start("--log-format", "json", "--access-log", environment={"TENSORMETER_TOKEN": TOKEN})
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "10.9.8.7"}
    path = "/api/v1/runs/no%0a%1b[2Jsuch%22run?filter=secret-filter"
    assert server.http.request("GET", f"{server.url}{path}", headers=headers).status == 404
    assert server.http.request("GET", f"{server.url}/api/v1/projects").status == 401
    eventually(lambda: len(log_of(server)) == 2)
    accepted, refused = log_of(server)
    expected = {"level": "INFO", "logger": "tensormeter.server.access", "message": "request", "method": "GET"}
    assert expected.items() <= accepted.items()
    assert (accepted["path"], accepted["status"]) == ('/api/v1/runs/no\n\x1b[2Jsuch"run', 404)
    assert (accepted["client"], accepted["token"]) == ("127.0.0.1", "server token")
    assert (refused["status"], refused["token"]) == (401, None)
    assert TOKEN not in server.stderr
    assert "secret-filter" not in server.stderr
    assert "\x1b" not in server.stderr


def test_the_access_log_names_a_token_that_lacks_a_permission(start, tmp_path, eventually):
    token = TokenFile(tmp_path / "data").create("uploads", ["write"])[1]
    server = start("--log-format", "json", "--access-log")
    for text in (token, "unknown"):
        server.http.request("GET", f"{server.url}/api/v1/runs", headers={"Authorization": f"Bearer {text}"})
    eventually(lambda: len(log_of(server)) == 2)
    assert [(line["status"], line["token"]) for line in log_of(server)] == [(403, "uploads"), (401, None)]
    assert token not in server.stderr


def test_logs_as_text(start, eventually):
    server = start("--access-log")
    assert server.ask("/api/v1/runs/a%20b%1b%0ac")[0] == 404
    eventually(lambda: server.stderr.count("\n") == 1)
    assert "INFO request method=GET path=" in server.stderr
    assert "status=404" in server.stderr
    assert "\x1b" not in server.stderr


def test_a_proxy_that_is_believed(start, eventually):
    token = {"TENSORMETER_TOKEN": TOKEN}
    server = start("--log-format", "json", "--access-log", "--forwarded-allow-ips", "127.0.0.1", environment=token)
    headers = {"X-Forwarded-For": "10.9.8.7", "X-Forwarded-Proto": "https"}
    assert server.ask("/healthz", headers)[0] == 200
    eventually(lambda: len(log_of(server)) == 1)
    assert log_of(server)[0]["client"] == "10.9.8.7"


def test_ready(start):
    server = start(environment={"TENSORMETER_TOKEN": TOKEN})
    assert server.ask("/readyz") == (200, {"status": "ok"})
    assert server.ask("/healthz") == (200, {"status": "ok"})
