"""Access to the server."""

import os
import subprocess
import sys

import pytest

from tensormeter.errors import SettingsError
from tensormeter.server import ServerConfig

TOKEN = "s3cret-token-of-the-test"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, server_class):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    server = server_class(folder / "data", "--token-file", str(folder / "token"), "--allowed-host", "Train.example")
    yield server
    assert server.stop() == 0
    assert server.stderr == ""


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/nothing", "/v1/metrics", "/nothing"])
@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ü"]
)
def test_no_token_no_answer(guarded, path, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = guarded.http.request("GET", f"{guarded.url}{path}", headers=headers)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_right_token(guarded):
    assert guarded.get("/api/v1/runs", {"Authorization": f"Bearer {TOKEN}"})["total"] == 0
    assert guarded.get("/api/v1/runs", {"Authorization": f"bearer {TOKEN}"})["total"] == 0
    assert guarded.post("/v1/metrics", b"", Authorization=f"Bearer {TOKEN}").status == 200
    assert guarded.get("/healthz") == {"status": "ok"}


def test_unauthorized_before_the_body_is_read(guarded):
    with guarded.connect() as connection:
        connection.sendall(b"POST /v1/metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:4320", 200),
        ("127.9.9.9", 200),
        ("[::1]:1", 200),
        ("train.EXAMPLE:99", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.1", 421),
        ("train.example@evil", 421),
        ("localhost:port", 421),
        ("local host", 421),
        ("", 421),
    ],
)
def test_hosts(guarded, host, status):
    headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
    assert guarded.http.request("GET", f"{guarded.url}/api/v1/runs", headers=headers).status == status
    assert guarded.http.request("POST", f"{guarded.url}/v1/metrics", headers=headers).status == (
        415 if status == 200 else status
    )


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:4320", 200),
        ("http://LOCALHOST:4320", 200),
        ("http://localhost:4321", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_origins(server, origin, status):
    headers = {"Host": "localhost:4320", "Origin": origin}
    assert server.http.request("GET", f"{server.url}/api/v1/runs", headers=headers).status == status


def test_a_simple_post_of_another_site(server):
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    assert server.http.request("POST", f"{server.url}/v1/metrics", body=b"", headers=headers).status == 403


@pytest.mark.parametrize("path", ["/", "/healthz", "/api/v1/runs", "/nothing", "/v1/metrics"])
def test_headers_of_every_answer(server, path):
    headers = server.http.request("GET", f"{server.url}{path}").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    assert "Server" not in headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "train.example", "10.0.0.1"])
def test_a_host_that_others_reach_needs_a_token(host):
    with pytest.raises(SettingsError, match="TENSORMETER_TOKEN"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, token=TOKEN).token == TOKEN


@pytest.mark.parametrize("token", ["", " ", "a b", "ü", "a\nb"])
def test_a_token_that_cannot_be_sent(token):
    with pytest.raises(SettingsError, match="token") as caught:
        ServerConfig(token=token)
    assert len(token) < 2 or token not in str(caught.value)


def test_the_token_is_not_shown(guarded):
    assert TOKEN not in repr(ServerConfig(token=TOKEN))
    assert TOKEN not in guarded.line


def test_an_open_port_with_a_token_takes_addresses_but_no_names(start):
    server = start("--host", "0.0.0.0", environment={"TENSORMETER_TOKEN": TOKEN})
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    for host, status in [("10.1.2.3:4320", 200), ("[2001:db8::1]", 200), ("evil.example", 421)]:
        assert server.ask("/api/v1/runs", {"Host": host, "Authorization": f"Bearer {TOKEN}"})[0] == status


def test_serve_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "tensormeter", "serve", "--data", str(tmp_path / "x"), "--host", "0.0.0.0"]
    environment = {key: value for key, value in os.environ.items() if key != "TENSORMETER_TOKEN"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tensormeter: host: '0.0.0.0'")
    assert done.stderr.count("\n") == 1
