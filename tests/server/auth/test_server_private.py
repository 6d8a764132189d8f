"""Files of a server are for its user alone; waiting for a lock on them ends; the address decides whether clients need a token."""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.processes import clean_environment
from tensormeter.disk import kernel_locks
from tensormeter.errors import SettingsError, StoreError
from tensormeter.server import ServerConfig
from tensormeter.server.auth.tokens import TokenFile
from tensormeter.server.store.sqlite import maintenance
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000_000_000_000
TOKEN = "s3cret-token-of-the-test"


@pytest.fixture
def no_umask():
    """New files are open to all users, unless their creator takes care. Child processes inherit this."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder):
    return {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != 0o600
    }


def run(*arguments):
    command = [sys.executable, "-m", "tensormeter", *map(str, arguments)]
    environment = clean_environment("TENSORMETER_")
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.mark.parametrize("mode", [0o755, 0o777, None])
def test_files_are_for_the_servers_user_under_every_umask(start, make, tmp_path, no_umask, mode):
    folder = tmp_path / "data" if mode else tmp_path / "above" / "data"
    if mode:
        folder.mkdir(mode=mode)
    assert run("token", "create", "alice", "--allow", "admin", "--data", folder).returncode == 0
    token = TokenFile(folder).create("bob", ["admin"])[1]
    headers = {"Authorization": f"Bearer {token}"}
    server = start(folder=folder)
    answer = server.post("/v1/logs", b"", **headers)
    assert answer.status == 200
    assert {"tensormeter.db", "tensormeter.db-wal", "tokens.json", "tokens.lock", "lock"} <= set(os.listdir(folder))
    assert modes(folder) == {}
    assert run("backup", tmp_path / "copy.db", "--data", folder).returncode == 0
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    assert server.stop() == 0
    assert run("compact", "--data", folder).returncode == 0
    assert modes(folder) == {}
    if mode is None:
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    warned = "is writable by its group and all users (mode 0777)" in server.stderr
    assert warned == (mode == 0o777)
    assert server.stderr.count("\n") == int(warned)


def test_files_that_are_open_to_others_are_closed_at_the_start(start, tmp_path):
    folder = tmp_path / "data"
    TokenFile(folder).create("alice", ["admin"])
    server = start(folder=folder)
    server.kill()  # leaves the log and the index
    files = sorted(path.name for path in folder.iterdir())
    for name in files:
        (folder / name).chmod(0o664)
    (folder / "of-another-program").touch(0o644)
    server = start(folder=folder)
    assert modes(folder) == {"of-another-program": 0o644}
    (line,) = server.stderr.splitlines()
    assert f"files in {folder} were accessible to other users; changed their modes to 0600" in line
    assert all(f"{name} (was 0664)" in line for name in files)
    assert run("token", "ls", "--data", folder).returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
def test_another_user_reads_nothing(start, make, no_umask):
    with contextlib.ExitStack() as cleaning:
        above = Path(tempfile.mkdtemp())
        cleaning.callback(shutil.rmtree, above)
        above.chmod(0o755)
        folder = above / "data"
        folder.mkdir(mode=0o755)
        TokenFile(folder).create("alice", ["admin"])
        server = start(folder=folder)
        for path in folder.iterdir():
            for flag in ("-r", "-w"):
                assert subprocess.run(["test", flag, path], user=65534, group=65534, check=False).returncode == 1, path
        assert server.stop() == 0


def test_a_lock_on_the_tokens_that_is_kept_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tensormeter.server.auth.tokens.LOCK_SECONDS", 0.3)
    file = TokenFile(tmp_path)
    file.create("alice", ["read"])
    with open(tmp_path / "tokens.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = rf"{tmp_path}/tokens\.lock: locked by process {os.getpid()} for more than 0\.3 s"
        with pytest.raises(StoreError, match=message):
            file.revoke("alice")
        monkeypatch.setattr(kernel_locks, "_LOCKS", tmp_path / "no such file")  # as on other systems than Linux
        with pytest.raises(StoreError, match=message):
            file.revoke("alice")
    file.revoke("alice")
    assert file.tokens() == {}


def test_the_process_that_holds_a_data_folder_is_named_also_if_it_is_no_server(tmp_path):
    SqliteStore(tmp_path).close()
    with open(tmp_path / "lock", "r+b") as lock:
        lock.write(b"1\n")  # of the last one
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in (SqliteStore, maintenance.compact):
            with pytest.raises(StoreError, match=f"in use by process {os.getpid()};"):
                attempt(tmp_path)
    SqliteStore(tmp_path).close()


_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
connection.execute("CREATE TABLE other (x)")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_store_that_another_process_has_locked_is_not_waited_for_without_an_end(tmp_path):
    """SQLite waits five seconds."""
    folder = tmp_path / "data"
    SqliteStore(folder).close()
    with sqlite3.connect(folder / "tensormeter.db") as database:
        database.execute("PRAGMA journal_mode = DELETE")
    command = [sys.executable, "-c", _HOLDER, folder / "tensormeter.db"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(
            StoreError, match=rf"locked.* \({folder}/tensormeter\.db is locked by process {holder.pid}\)"
        ):
            maintenance.back_up(folder, tmp_path / "copy")
        holder.stdin.close()
    database.close()
    assert not (tmp_path / "copy").exists()


def test_a_backup_that_goes_no_further_ends(monkeypatch):
    monkeypatch.setattr(maintenance, "_BACKUP_PATIENCE", -1.0)
    progress = maintenance._Progress()
    progress(sqlite3.SQLITE_OK, 10, 20)
    progress(sqlite3.SQLITE_OK, 9, 20)
    with pytest.raises(StoreError, match="it is locked"):
        progress(sqlite3.SQLITE_BUSY, 9, 20)


OPEN = [
    {"allowed_hosts": ["metrics.example.org"]},
    {"allowed_hosts": ["localhost", "metrics"]},
    {"allowed_hosts": ["10.1.2.3"]},
    {"allowed_hosts": ["localhost.example.org"]},
    {"forwarded_allow_ips": "127.0.0.1"},
    {"forwarded_allow_ips": "10.0.0.0/8, ::1"},
    {"host": "localhost", "allowed_hosts": ["metrics"]},
    {"host": "::1", "forwarded_allow_ips": "::1"},
]


@pytest.mark.parametrize("settings", OPEN)
def test_a_server_that_a_name_or_a_proxy_leads_to_needs_a_token(tmp_path, settings):
    with pytest.raises(SettingsError, match="so the server needs a token") as caught:
        ServerConfig(directory=tmp_path, **settings)
    assert "TENSORMETER_TOKEN" in str(caught.value)
    assert not ServerConfig(directory=tmp_path, token=TOKEN, **settings).is_local
    TokenFile(tmp_path).create("alice", ["read"])
    assert not ServerConfig(directory=tmp_path, **settings).is_local


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "127.0.0.2"},
        {"host": "::1"},
        {"host": "localhost", "allowed_hosts": ["LOCALHOST", "127.0.0.1", "[::1]", "127.1.2.3"]},
        {"forwarded_allow_ips": " , "},
    ],
)
def test_a_server_of_this_machine_alone_needs_none(tmp_path, settings):
    assert ServerConfig(directory=tmp_path, **settings).is_local


@pytest.mark.parametrize(
    "settings",
    [{"allowed_hosts": [name]} for name in ("*", "*.example.org", "", "a:80", "http://a", "a/b", "x@y")]
    + [{"forwarded_allow_ips": text} for text in ("10.*", "0.0.0.0/0", "::/0", "proxy", "10.0.0.1/8")],
)
def test_names_and_proxies_that_are_none(tmp_path, settings):
    with pytest.raises(SettingsError, match=f"{next(iter(settings))}: expected"):
        ServerConfig(directory=tmp_path, token=TOKEN, **settings)


@pytest.mark.parametrize("option", [("--allowed-host", "metrics.example.org"), ("--forwarded-allow-ips", "127.0.0.1")])
def test_serve_behind_a_proxy_without_a_token_ends_in_one_line(tmp_path, option):
    done = run("serve", "--port", 0, "--data", tmp_path / "x", *option)
    assert (done.returncode, done.stdout) == (1, "")
    assert "so the server needs a token" in done.stderr
    assert done.stderr.count("\n") == 1


def test_tokens_that_are_gone_open_no_server_behind_a_proxy(start, tmp_path):
    TokenFile(tmp_path / "data").create("alice", ["read"])
    server = start("--allowed-host", "metrics.example.org")
    (tmp_path / "data" / "tokens.json").unlink()
    assert server.ask("/api/v1/runs")[0] == 401


@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Server", "X-Real-IP"]
)
def test_a_server_without_tokens_answers_no_client_behind_an_unknown_proxy(start, header):
    """Proxies may send the address of the server itself as `Host`."""
    server = start()
    assert server.ask("/api/v1/runs")[0] == 200
    status, document = server.ask("/api/v1/runs", {header: "203.0.113.9"})
    assert status == 401
    assert "through a proxy" in document["error"]["message"]
