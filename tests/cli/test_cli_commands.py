"""The output of the commands."""

import hashlib
import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from support.otlp import Parts
from support.ports import reserve_port
from tensormeter.otlp.batch import Event
from tensormeter.otlp.encode import encode_events


def failed(done):
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("tensormeter: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_help_imports_no_command(run_cli):
    done = run_cli("--help")
    assert done.returncode == 0
    for command in ("runs", "serve", "show", "sync"):
        assert f"  {command} " in done.stdout
    probe = (
        "import sys, tensormeter.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'rich', 'starlette', 'urllib3', 'plotext', 'google.protobuf', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert (
        subprocess.run([sys.executable, "-c", probe], stdout=subprocess.DEVNULL, timeout=300, check=False).returncode
        == 0
    )


def test_the_version_is_printed(run_cli):
    assert run_cli("--version").stdout.startswith("tensormeter, version ")


def test_an_unknown_command_is_an_error(run_cli):
    done = run_cli("nothing")
    assert done.returncode == 2
    assert "No such command 'nothing'" in done.stderr


def test_runs_are_listed_without_control_characters(run_cli):
    done = run_cli("runs")
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["project", "run", "name", "state", "points", "started", "last", "update"]
    assert len(lines) == 2
    (line,) = [line for line in lines if line.startswith("demo")]
    assert line.split()[1:6] == ["abc123", "first", "failed", "1,500", "2025-06-15"]
    assert "15:06:40" in line
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "loss�[2J[bold red]�" in done.stdout


def test_dates_are_not_wrapped_in_a_narrow_terminal(run_cli):
    out = run_cli("runs", COLUMNS="80").stdout
    assert out.split()[:7] == ["project", "run", "name", "state", "points", "started", "last"]
    assert out.count("2025-06-15 15:06 ") == 2


@pytest.mark.parametrize("columns", ["80", ""])
def test_every_run_is_listed_with_its_whole_id(run_cli, columns):
    header, *lines = run_cli("runs", COLUMNS=columns).stdout.splitlines()
    assert sum("abc123" in line for line in lines) == 1
    assert "last update" in header
    if not columns:
        assert len(lines) == 2


def test_runs_are_listed_by_project(run_cli):
    assert len(run_cli("runs", "--project", "demo").stdout.splitlines()) == 2
    assert run_cli("runs", "--project", "none").stdout == "no runs in project none yet\n"
    assert "1 of 2 runs" in run_cli("runs", "--limit", "1").stdout


@pytest.mark.parametrize("selector", ["abc123", "abc", "first"])
def test_show_describes_a_run(run_cli, selector):
    done = run_cli("show", selector)
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert out.startswith("demo / first\n")
    lines: dict[str, list[str]] = {}
    for line in out.splitlines():
        if line.strip():
            lines.setdefault(line.split()[0], line.split())  # the first: the chart repeats the name
    assert lines["state"] == ["state", "failed"]
    assert lines["processes"] == ["processes", "2"]
    assert lines["failed:"] == ["failed:", "abc123-0"]
    assert lines["finished:"] == ["finished:", "rank", "1", "on", "h�"]
    assert (lines["group"], lines["job"], lines["tags"], lines["notes"]) == (
        ["group", "a", "sweep"],
        ["job", "type", "eval"],
        ["tags", "x,", "[y]"],
        ["notes", "n"],
    )
    assert lines["points"] == "points 1,000 (1,500 with steps and system metrics)".split()
    assert lines["forked"] == ["forked", "from", "root@7"]
    assert (lines["summary.best"], lines["summary.why"]) == (["summary.best", "0.5"], ["summary.why", "[b]z�"])
    assert lines["config.lr"] == ["config.lr", "0.001"]
    assert lines["config.opt.betas"] == ["config.opt.betas", "[0.9]"]
    assert lines["config.opt.deep.a"] == ["config.opt.deep.a", "1"]
    assert lines["config.name"] == ["config.name", "[red]x�[0m"]
    assert lines["train/loss"] == ["train/loss", "split=train", "Infinity", "499", "500"]
    assert lines["acc"] == ["acc", "split=train", "0.25", "499", "500"]
    assert "tensormeter.step" not in out
    assert "┤" in out
    assert "\x1b" not in out
    assert "step" in out.splitlines()[-1]


def test_show_draws_chosen_metrics(run_cli):
    out = run_cli("show", "abc123", "--metric", "acc", "--metric", "train/*").stdout
    assert out.count("┌") == 2
    assert "no metric matches" in run_cli("show", "abc123", "--metric", "zzz*").stdout


def test_show_lists_media_and_the_last_texts(run_cli):
    done = run_cli("show", "abd456")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["phase", "text", "2", "decay\N{REPLACEMENT CHARACTER}[2J"] in lines
    for expected in (["../grid", "images", "1"], ["v", "video", "1"], ["v", "html", "1"], ["t", "table", "1"]):
        assert expected in lines


def test_show_prints_no_control_characters_of_names(run_cli):
    done = run_cli("show", "abd456")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "loss�[2J[bold red]�" in done.stdout
    assert "seconds" in done.stdout  # no steps were logged


def test_unknown_and_ambiguous_ids_of_runs_are_an_error(run_cli):
    assert "no run 'zzz'; list runs with `tensormeter runs`" in failed(run_cli("show", "zzz"))
    assert "2 runs match 'ab' (" in failed(run_cli("show", "ab"))
    assert run_cli("show", "ab", "--project", "demo").returncode == 0


def test_a_server_that_does_not_answer_is_an_error_with_advice(run_cli, url):
    port = reserve_port()
    error = failed(run_cli("runs", "--endpoint", f"http://127.0.0.1:{port}"))
    assert f"no server at http://127.0.0.1:{port}; start one with `tensormeter serve`" in error
    assert "token" in failed(run_cli("runs", TENSORMETER_TOKEN="wrong"))
    assert "endpoint: expected a URL" in failed(run_cli("runs", "--endpoint", "ftp://x"))


def test_a_server_of_another_kind_is_named(run_cli):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")

        thread = threading.Thread(target=answer)
        thread.start()
        message = failed(run_cli("runs", "--endpoint", f"http://127.0.0.1:{listener.getsockname()[1]}"))
        thread.join()
    assert "is not a tensormeter server" in message


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "zstandard"])
def test_serve_names_the_missing_extra(run_cli, tmp_path, package):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    message = failed(run_cli("serve", PYTHONPATH=str(tmp_path / "blocked")))
    assert "pip install 'tensormeter[server]'" in message


@pytest.mark.parametrize("content", [None, b"\xff", b"", b"two words"])
def test_token_files_that_cannot_be_used_are_an_error(run_cli, tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    assert "token" in failed(run_cli("serve", "--port", "0", "--token-file", str(tmp_path / "token")))


@pytest.mark.parametrize(
    "body",
    ["text", 7, None, [1], {}, {"git": "x", "source": 1, "packages": [1], "gpus": 2, "untracked": 3, "size": "s", "aliases": 4, "digest": 5}],
    ids=str,
)  # fmt: skip
def test_bodies_of_other_senders_end_no_command(run_cli, client, post, tmp_path, body):
    """Any OpenTelemetry sender may send events with our names and other bodies."""
    run = f"odd-{hashlib.sha256(repr(body).encode()).hexdigest()[:8]}"
    names = ("run.code", "artifact", "image", "images", "video", "audio", "figure", "html", "table", "text", "run.end")
    events = [Event(f"tensormeter.{name}", 1_750_000_000_000_000_000, body, {"tensormeter.key": "k"}) for name in names]
    post("/v1/logs", encode_events(Parts.resource(run, "p"), events))
    for command in (["show", run], ["show", run, "--code"], ["diff", run, run]):
        done = run_cli(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
    done = run_cli(
        "export", run, "--output", str(tmp_path / "points.csv"), "--format", "csv", "--media", str(tmp_path / "media")
    )
    has_digest = isinstance(body, dict) and "digest" in body
    missing = "the server could not return 3 media\n" if has_digest else ""
    assert (done.returncode, done.stderr) == (0, missing)
    stored = client.run(run)
    (artifact,) = stored.artifacts()
    assert (artifact.size, artifact.digest) == (None, None)
    assert (stored.code.packages, stored.code.gpus, stored.code.dirty) == ({}, [], None)
    assert [image.caption for image in stored.images()] in ([""], ["", ""])
