"""Tokens: who may do what, to whose runs, and until when."""

import json
import stat
import threading
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from support.processes import run_python
from tensormeter.errors import SettingsError, StoreError, UsageError
from tensormeter.otlp.batch import Batch, Event
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.otlp.media import Image
from tensormeter.server import ServerConfig
from tensormeter.server.auth.tokens import TokenFile

T0 = 1_750_000_000_000_000_000
PNG = b"\x89PNG\r\n\x1a\n" + b"the secret picture"
ROUTES = [
    ("GET", "/api/v1/projects"),
    ("GET", "/api/v1/runs"),
    ("GET", "/api/v1/runs/{run_id}"),
    ("PATCH", "/api/v1/runs/{run_id}"),
    ("DELETE", "/api/v1/runs/{run_id}"),
    ("GET", "/api/v1/runs/{run_id}/attempt"),
    ("GET", "/api/v1/runs/{run_id}/attempts"),
    ("GET", "/api/v1/runs/{run_id}/metrics"),
    ("GET", "/api/v1/runs/{run_id}/sections"),
    ("GET", "/api/v1/metrics"),
    ("GET", "/api/v1/sections"),
    ("GET", "/api/v1/fields"),
    ("GET", "/api/v1/runs/{run_id}/events"),
    ("GET", "/api/v1/runs/{run_id}/logs"),
    ("GET", "/api/v1/runs/{run_id}/media/{digest}"),
    ("GET", "/api/v1/runs/{run_id}/series"),
    ("POST", "/api/v1/runs/{run_id}/series"),
    ("GET", "/api/v1/runs/{run_id}/ranks"),
    ("GET", "/api/v1/runs/{run_id}/histograms"),
    ("GET", "/api/v1/runs/{run_id}/distributions"),
    ("POST", "/api/v1/query"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    file = TokenFile(tmp_path_factory.mktemp("tokens") / "data")
    given = {
        "admin": file.create("admin", ["admin"])[1],
        "reader": file.create("reader", ["read"])[1],
        "writer": file.create("writer", ["write"])[1],
        "editor": file.create("editor", ["read", "write"])[1],
        "a": file.create("all of a", ["admin"], project="a")[1],
        "a writer": file.create("a writer", ["write"], project="a")[1],
        "b writer": file.create("b writer", ["write"], project="b")[1],
    }
    given["folder"] = file._path.parent
    return given


@pytest.fixture(scope="module")
def server(tokens, server_class, make):
    server = server_class(tokens["folder"])
    for project, word in [("a", "open"), ("b", "secret")]:
        headers = bearer(tokens["admin"])
        rows = make.rows("same", [(T0 + i, i, {f"{word}/loss": float(i)}) for i in range(3)], project=project)
        assert server.post("/v1/metrics", encode_metrics([rows]), **headers).status == 200
        rows = make.rows(f"only-{project}", [(T0, 0, {f"{word}/loss": 1.0})], project=project, **{"host.name": word})
        assert server.post("/v1/metrics", encode_metrics([rows]), **headers).status == 200
        events = [
            Event("tensormeter.run.start", T0, {"config": {word: word}}),
            Event("tensormeter.alert", T0 + 1, {"title": word, "text": "", "level": "WARN"}),
            Image(word, PNG if project == "b" else PNG[:8] + b"the open picture", "image/png", 1, 1).event(T0, 0),
        ]
        body = encode_events(make.resource(f"only-{project}", project=project), events)
        assert server.post("/v1/logs", body, **headers).status == 200
    yield server
    assert server.stop() == 0
    assert server.stderr == ""


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def ask(server, token, method, path, document=None, **query):
    url = f"{server.url}{path}" + (f"?{urlencode(query)}" if query else "")
    body = None if document is None else json.dumps(document).encode()
    return server.http.request(method, url, headers=bearer(token), body=body)


def digest_of(server, tokens, run):
    answer = ask(server, tokens["admin"], "GET", f"/api/v1/runs/{run}/events", name="tensormeter.image")
    return answer.json()["events"][0]["body"]["digest"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("admin", {"write", "read", "edit", "delete"}),
        ("reader", {"read"}),
        ("writer", {"write"}),
        ("editor", {"read", "write", "edit"}),
        ("a writer", {"write"}),
    ],
)
def test_permissions(server, tokens, make, name, allowed):
    token = tokens[name]
    body = encode_metrics([make.rows(f"of-{name.replace(' ', '-')}", [(T0, 0, {"v": 1.0})], project="a")])
    run = "/api/v1/runs/only-a"
    tried = {
        "write": server.post("/v1/metrics", body, **bearer(token)).status,
        "durable": ask(server, token, "GET", "/api/v1/durable").status,
        "read": ask(server, token, "GET", run).status,
        "edit": ask(server, token, "PATCH", run, {"notes": name}).status,
        "delete": ask(server, token, "DELETE", "/api/v1/runs/no-such-run").status,
    }
    if "write" in allowed:
        allowed = allowed | {"durable"}
    expected = {what: (404 if what == "delete" else 200) if what in allowed else 403 for what in tried}
    assert tried == expected
    assert (ask(server, token, "GET", f"{run}/attempt", process="p").status == 200) == ("write" in allowed)
    assert (ask(server, token, "POST", "/api/v1/query", {"runs": ["only-a"], "metrics": ["v"]}).status == 200) == (
        "read" in allowed
    )


def test_the_routes_here_are_all_there_are(server, tokens):
    document = ask(server, tokens["admin"], "GET", "/api/v1/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {
        *ROUTES,
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/api/v1/stream"),
        ("GET", "/api/v1/durable"),
    }


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_token_of_one_project_sees_no_other(server, tokens, method, path):
    """Neither by lists, nor by id, nor by naming the project; what is there for all is not there for the holder."""
    digest = digest_of(server, tokens, "only-b")
    target = path.replace("{run_id}", "only-b").replace("{digest}", digest)
    bodies = {"PATCH": {"notes": "was here"}, "POST": {"runs": ["only-b"], "metrics": ["secret/loss"], "x": "time"}}
    for query in ({}, {"project": "b"}, {"project": "a"}, {"project": ""}):
        more = {} if method == "POST" else {"metric": "secret/loss", "filter": "points > 0", "runs": "only-b"}
        answer = ask(server, tokens["a"], method, target, bodies.get(method), **query, **more)
        open_to_all = ("/api/v1/projects", "/api/v1/runs", "/api/v1/fields", "/api/v1/runs/{run_id}/attempt")
        assert answer.status == (200 if path in open_to_all else 404), answer.data
        if path.endswith("/attempt"):
            assert answer.json() == {"attempt": 1, "last_step": None}, "as if there were no such run"
        if answer.status == 200:
            assert b"secret" not in answer.data
            assert b"only-b" not in answer.data
    if method == "POST":
        for run in ("b/only-b", "b/same"):
            assert ask(server, tokens["a"], method, path, bodies["POST"] | {"runs": [run]}).status == 404
            for list_path in ("/api/v1/metrics", "/api/v1/sections"):
                assert ask(server, tokens["a"], "GET", list_path, runs=f"only-a,{run}").status == 404
    assert ask(server, tokens["admin"], "GET", "/api/v1/runs/only-b").json()["notes"] == ""


def test_a_run_id_that_two_projects_have_is_ours(server, tokens):
    assert ask(server, tokens["admin"], "GET", "/api/v1/runs/same").status == 409
    mine = ask(server, tokens["a"], "GET", "/api/v1/runs/same").json()
    assert (mine["project"], set(mine["summary"])) == ("a", {"open/loss", "tensormeter.step"})
    assert ask(server, tokens["a"], "GET", "/api/v1/runs/same", project="b").status == 404
    answer = ask(server, tokens["a"], "GET", "/api/v1/runs/same/series", metric="secret/loss")
    assert answer.json()["series"] == []


def test_an_image_of_another_project_by_its_digest(server, tokens):
    ours, theirs = digest_of(server, tokens, "only-a"), digest_of(server, tokens, "only-b")
    assert ask(server, tokens["a"], "GET", f"/api/v1/runs/only-a/media/{ours}").status == 200
    assert ask(server, tokens["a"], "GET", f"/api/v1/runs/only-a/media/{theirs}").status == 404


def stream(server, token, runs):
    connection = server.connect()
    path = f"/api/v1/stream?runs={quote(runs)}&after=0.0"
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    connection.sendall(request.encode())
    return connection


def test_a_stream_has_only_our_runs(server, tokens, make):
    with stream(server, tokens["a"], "only-b,b/same,only-a,b/only-b") as connection:
        seen = b""
        while b'"run":"only-a"' not in seen:
            part = connection.recv(65536)
            assert part
            seen += part
        rows = make.rows("only-b", [(T0 + 99, 1, {"secret/loss": 2.0})], project="b")
        server.post("/v1/metrics", encode_metrics([rows]), **bearer(tokens["admin"]))
        rows = make.rows("only-a", [(T0 + 99, 1, {"open/later": 2.0})], project="a")
        server.post("/v1/metrics", encode_metrics([rows]), **bearer(tokens["admin"]))
        while b"open/later" not in seen:
            part = connection.recv(65536)
            assert part
            seen += part
    assert b"only-b" not in seen
    assert b"secret" not in seen
    assert b'"run":"same"' not in seen


@pytest.mark.parametrize("name", ["a", "a writer"])
def test_what_is_sent_for_another_project_is_refused_as_a_whole(server, tokens, make, name):
    ours = make.rows("mixed", [(T0, 0, {"v": 1.0})], project="a")
    theirs = make.rows("mixed", [(T0, 0, {"v": 1.0})], project="b")
    nobodys = make.gauge("v", [T0], [1.0])

    for batches in ([theirs], [ours, theirs], [Batch({"host.name": "x"}, [nobodys])]):
        answer = server.post("/v1/metrics", encode_metrics(batches), **bearer(tokens[name]))
        assert answer.status == 403
        assert b"is for project 'a'" in answer.data
    event = Event("e", T0, "text")
    body = encode_events(make.resource("mixed", project="b"), [event])
    assert server.post("/v1/logs", body, **bearer(tokens[name])).status == 403
    record = {"body": {"stringValue": "x"}, "timeUnixNano": str(T0)}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "b"}}]}
    body = json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}).encode()
    headers = {"Content_Type": "application/json"} | bearer(tokens[name])
    answer = server.post("/v1/logs", body, **headers)
    assert (answer.status, answer.json()["code"]) == (403, 7)
    listed = ask(server, tokens["admin"], "GET", "/api/v1/runs", filter='id = "mixed"').json()
    assert listed["total"] == 0
    assert server.post("/v1/metrics", encode_metrics([]), **bearer(tokens[name])).status == 200


def test_a_batch_id_of_one_project_is_free_in_another(server, tokens, make):
    for name, project, value in [("b writer", "b", 2.0), ("a writer", "a", 1.0), ("writer", "c", 3.0)]:
        for changed, expected in [(0.0, 200), (0.0, 200), (0.5, 409)]:
            rows = make.rows(f"named-{project}", [(T0, 0, {"v": value + changed})], project=project)
            headers = bearer(tokens[name]) | {"Tensormeter_Batch_Id": "one-name"}
            assert server.post("/v1/metrics", encode_metrics([rows]), **headers).status == expected
        path = f"/api/v1/runs/named-{project}/series"
        (series,) = ask(server, tokens["admin"], "GET", path, metric="v").json()["series"]
        assert series["value"] == [value]


def test_a_token_is_refused_from_the_moment_it_is_revoked(server, tokens):
    file = TokenFile(tokens["folder"])
    _, token = file.create("guest", ["read"])
    with stream(server, token, "only-a") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert ask(server, token, "GET", "/api/v1/projects").status == 200
        file.revoke("guest")
        assert ask(server, token, "GET", "/api/v1/projects").status == 401
        while connection.recv(65536):  # the stream ends by itself
            pass
    with pytest.raises(UsageError, match="no token 'guest'"):
        file.revoke("guest")


def test_a_token_that_expires(server, tokens, eventually):
    file = TokenFile(tokens["folder"])
    _, token = file.create("short", ["read"], days=3 / 86400)
    eventually(lambda: ask(server, token, "GET", "/api/v1/projects").status == 401)
    _, token = file.create("long", ["read"], days=1)
    assert ask(server, token, "GET", "/api/v1/projects").status == 200
    for name in ("short", "long"):
        file.revoke(name)


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "0", str.upper, lambda t: f"tm_00000000_{t[12:]}"])
def test_almost_a_token(server, tokens, change):
    assert ask(server, change(tokens["admin"]), "GET", "/api/v1/projects").status == 401


def test_only_hashes_are_kept(tokens):
    path = tokens["folder"] / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    for name, token in tokens.items():
        if name != "folder":
            assert token.rpartition("_")[2] not in text
    assert "digest" not in repr(list(TokenFile(tokens["folder"]).tokens().values()))


def test_many_at_once_lose_nothing(tmp_path):
    file = TokenFile(tmp_path / "data")

    def create(number):
        TokenFile(tmp_path / "data").create(f"n{number}", ["read"])

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in file.tokens().values()} == {f"n{number}" for number in range(16)}


def test_names_that_cannot_be(tmp_path):
    file = TokenFile(tmp_path)
    file.create("one", ["read"])
    with pytest.raises(UsageError, match="a token named 'one' already exists"):
        file.create("one", ["write"])
    for name in ("", "x" * 129, "a\nb"):
        with pytest.raises(SettingsError, match="name"):
            file.create(name, ["read"])
    with pytest.raises(SettingsError, match="permissions"):
        file.create("two", [])
    with pytest.raises(SettingsError, match="project"):
        file.create("two", ["read"], project="\udcff")


def test_a_loopback_server_that_gets_its_first_token_wants_one_from_then_on(start):
    server = start()
    assert server.ask("/api/v1/projects")[0] == 200
    file = TokenFile(server.folder)
    _, token = file.create("first", ["read"])
    assert server.ask("/api/v1/projects")[0] == 401
    assert server.ask("/api/v1/projects", bearer(token))[0] == 200
    file.revoke("first")
    assert server.ask("/api/v1/projects")[0] == 401  # no token is not no need of one


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2, "tokens": []}', b'{"version": 1, "tokens": [{}]}']
)
def test_a_damaged_file_lets_no_client_in(start, content):
    server = start()
    path = Path(server.folder) / "tokens.json"
    path.write_bytes(content)
    status, document = server.ask("/api/v1/projects")
    assert (status, document["error"]["code"]) == (503, "unavailable")
    assert "tokens.json" in server.stderr
    with pytest.raises(StoreError, match=r"tokens\.json"):
        TokenFile(server.folder).create("one", ["read"])
    assert path.read_bytes() == content


def test_other_machines_need_a_token_in_the_file_or_the_environment(tmp_path):
    with pytest.raises(SettingsError, match="tensormeter token create"):
        ServerConfig(host="0.0.0.0", directory=tmp_path)
    file = TokenFile(tmp_path)
    file.create("one", ["read"])
    config = ServerConfig(host="0.0.0.0", directory=tmp_path)
    assert config.own_token not in repr(config)
    file.revoke("one")
    with pytest.raises(SettingsError, match="tensormeter token create"):
        ServerConfig(host="0.0.0.0", directory=tmp_path)


def cli(folder, *arguments):
    return run_python("-m", "tensormeter", "token", *arguments, "--data", folder)


def test_the_command_line(start):
    server = start()
    folder = server.folder
    assert cli(folder, "ls").stdout == "no tokens; only this machine can use the server, without a token\n"
    done = cli(folder, "create", "ci", "--allow", "write", "--allow", "read", "--project", "demo", "--days", "30")
    assert done.returncode == 0
    token = done.stdout.strip()
    assert token.startswith("tm_")
    assert token not in done.stderr
    assert "may write and read in project demo" in done.stderr
    assert server.ask("/api/v1/projects", bearer(token))[0] == 200
    again = cli(folder, "create", "ci", "--allow", "read")
    assert (again.returncode, again.stdout, again.stderr.count("\n")) == (1, "", 1)
    listed = cli(folder, "ls").stdout
    assert token.split("_")[1] in listed
    assert "write read" in listed
    assert token.rpartition("_")[2] not in listed
    assert cli(folder, "revoke", "ci").stdout.startswith(f"revoked token {token.split('_')[1]} of ci")
    assert server.ask("/api/v1/projects", bearer(token))[0] == 401
    assert cli(folder, "revoke", "ci").returncode == 1
    assert cli(folder, "ls").stdout == "no tokens; the server refuses all clients until you create one\n"
    assert cli(folder, "create", "x").returncode == 2
