"""Run directories that others have made, or that a command is given by path, are data only.

The tests with two users need root: what runs as another user may read what root may (Python is often below /root), and has no other
right of root's.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from support.processes import clean_environment, run_python
from tensormeter.agent.launch import ensure_agent
from tensormeter.agent.run_directory.directory import RunDirectory, find_runs, runs_locked
from tensormeter.disk.locks import holder, locked
from tensormeter.settings import Settings

RECORD = """
import tensormeter
with tensormeter.init("p", id="r", mode="offline") as run:
    run.log({"x": 1.0}, 1)
"""
SECRET = "the-secret-of-the-user"


class User:
    """A user id without an account, with a home."""

    def __init__(self, uid, folder):
        self.uid, self.home, self.shared = uid, folder / f"home-{uid}", folder / "shared"
        self.home.mkdir(mode=0o755)
        os.chown(self.home, uid, uid)

    def run(self, *command, **settings):
        """Run Python as this user, in a home without settings and with a shared memory that all users have."""
        inherited = clean_environment("TENSORMETER_", "OTEL_", "XDG_")
        variables = {f"TENSORMETER_{name.upper()}": str(value) for name, value in settings.items()}
        rights = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        return subprocess.run(
            [
                "setpriv",
                f"--reuid={self.uid}",
                f"--regid={self.uid}",
                "--clear-groups",
                *rights,
                sys.executable,
                *command,
            ],
            env=inherited
            | {"HOME": str(self.home), "TMPDIR": str(self.shared), "TENSORMETER_BUFFER_DIR": str(self.shared)}
            | {
                "TENSORMETER_SAMPLE_INTERVAL": "0",
                "TENSORMETER_SELF_METRICS_INTERVAL": "0",
                "TENSORMETER_CONSOLE": "off",
            }
            | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def record(self, **settings):
        done = self.run("-c", RECORD, **settings)
        assert done.returncode == 0, done.stderr
        return done

    def tensormeter(self, *arguments, **settings):
        return self.run("-m", "tensormeter", *map(str, arguments), **settings)

    def own(self, folder, mode=0o777):
        """Let everything from a folder on be this user's."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.uid, self.uid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(mode)


def belongs(process, folder, users):
    """Whether a process is one of these users', or has been started for something in the folder."""
    uids, command = process.info["uids"], process.info["cmdline"] or ()
    return (uids and uids.real in {user.uid for user in users}) or any(str(folder) in part for part in command)


@pytest.fixture
def users():
    """Another user, and the user whose commands must not harm that user."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to be two users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o1777)
    first = 1_000_000 + 2 * os.getpid()  # no tests that run at the same time have them
    pair = User(first, folder), User(first + 1, folder)
    if pair[0].run("-c", "import tensormeter").returncode:
        pytest.skip("another user cannot run this Python")
    yield pair
    while left := [process for process in psutil.process_iter(["uids", "cmdline"]) if belongs(process, folder, pair)]:
        for process in left:  # agents that linger, and others that take their place
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=60)
    shutil.rmtree(folder)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The folder of a run that has been recorded and whose agent has ended."""
    monkeypatch.setenv("TENSORMETER_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TENSORMETER_BUFFER_DIR", str(tmp_path / "shm"))
    run_python("-c", RECORD, check=True)
    (run,) = (tmp_path / "state" / "runs").glob("r@*")
    with (run / "agent.lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    return run


@pytest.fixture
def sync(tmp_path):
    def sync(*arguments, **variables):
        return run_python("-m", "tensormeter", "sync", *arguments, environment=os.environ | variables, folder=tmp_path)

    return sync


def describe(run, settings=(), **values):
    """Change what `run.json` says."""
    document = json.loads((run / "run.json").read_text()) | values
    document["settings"] |= dict(settings)
    document.pop("checksum", None)
    (run / "run.json").write_text(json.dumps(document))


def tokens(receiver):
    return {request.headers.get("authorization") for request in receiver.received}


def test_a_given_folder_is_delivered_with_the_callers_settings(
    recorded, sync, tmp_path, receiver, another_receiver, monkeypatch
):
    """Endpoint, token, exporters and their options, paths: all of them, and the command says so."""
    (tmp_path / "secret").write_text("a-file-with-a-secret")
    stranger = {
        "mode": "online",
        "endpoint": another_receiver.url,
        "token_file": str(tmp_path / "secret"),
        "exporters": ["experiment", "jsonl"],
        "exporter_options": {"jsonl.directory": str(tmp_path / "written")},
        "buffer_directory": str(tmp_path / "other"),
    }
    describe(recorded, stranger)
    shutil.move(recorded, tmp_path / "incoming")
    done = sync(tmp_path / "incoming", TENSORMETER_ENDPOINT=receiver.url, TENSORMETER_TOKEN=SECRET)
    assert done.returncode == 0, done.stdout + done.stderr
    assert another_receiver.received == []
    assert tokens(receiver) == {f"Bearer {SECRET}"}
    assert receiver.rows()[(1, (("x", 1.0),))] == 1
    assert not (tmp_path / "written").exists()
    assert not (tmp_path / "incoming").exists()
    assert "because the folder was given by its path" in done.stdout
    assert f"endpoint {receiver.url} (run.json: {another_receiver.url})" in done.stdout
    assert "exporters experiment (run.json: experiment, jsonl)" in done.stdout
    assert "token_file none (run.json: " in done.stdout
    assert "exporter_options" in done.stdout


def test_a_run_of_ones_own_goes_where_it_wanted_to_go(recorded, sync, receiver):
    describe(recorded, {"endpoint": receiver.url, "mode": "online"})
    done = sync(TENSORMETER_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "command's settings" not in done.stdout
    assert receiver.rows()[(1, (("x", 1.0),))] == 1


def test_rings_that_are_not_found_keep_a_given_folder_from_being_removed(sync, tmp_path, receiver):
    """It was recorded with another shared memory than the command has, and its agent never came."""
    state, memory = tmp_path / "state", tmp_path / "memory"
    places = {"TENSORMETER_DIR": str(state), "TENSORMETER_BUFFER_DIR": str(memory), "TENSORMETER_AGENT": "off"}
    run_python("-c", RECORD, environment=os.environ | places, check=True)
    there = {"TENSORMETER_ENDPOINT": receiver.url, "TENSORMETER_BUFFER_DIR": str(tmp_path / "other")}
    done = sync(state, **there)
    assert done.returncode == 1
    assert f"set TENSORMETER_BUFFER_DIR to {memory}" in done.stdout
    (rings,) = memory.glob("tensormeter-*/r@*")
    rings.chmod(0o777)
    done = sync(TENSORMETER_DIR=str(state))
    assert f"some points of the run are in {rings}, which was not read: other users can write to" in done.stdout
    rings.chmod(0o700)
    assert list(state.glob("runs/r@*/run.json"))
    done = sync(state, **there | {"TENSORMETER_BUFFER_DIR": str(memory)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert receiver.rows()[(1, (("x", 1.0),))] == 1


@pytest.mark.parametrize("name", ["spool.sqlite", "agent.lock", "rings", "exporters/jsonl/appended.json", "run.json"])
def test_a_given_folder_with_links_is_left_alone(recorded, sync, tmp_path, receiver, name):
    """Else what is written there would change what they lead to."""
    victim = tmp_path / "thesis.sqlite"
    victim.write_text("years of work" * 100)
    shutil.move(recorded, tmp_path / "incoming")
    path = tmp_path / "incoming" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    done = sync(tmp_path / "incoming", TENSORMETER_ENDPOINT=receiver.url)
    assert done.returncode == 1
    assert f"{path} is a link" in done.stdout
    assert victim.read_text() == "years of work" * 100
    assert receiver.received == []


def test_a_given_folder_with_other_things_in_it_stays(recorded, sync, tmp_path, receiver):
    shutil.move(recorded, tmp_path / "thesis")
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    done = sync(tmp_path / "thesis", TENSORMETER_ENDPOINT=receiver.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


@pytest.mark.parametrize("command", ["sync", "spool"])
def test_a_journal_that_names_another_file_is_not_played_back(recorded, tmp_path, receiver, command):
    """SQLite would delete that file, as one of a transaction on several databases that is over."""
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    spool = recorded / "spool.sqlite"
    with closing(sqlite3.connect(spool)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(victim)
    header = magic + struct.pack(">5I", 0, 1, pages, 512, size)
    end = struct.pack(">I", (1 << 30) // size + 1) + name + struct.pack(">2I", len(name), sum(name)) + magic
    spool.with_name("spool.sqlite-journal").write_bytes(header.ljust(512, b"\0") + end)
    shutil.move(recorded, tmp_path / "incoming")
    arguments = {
        "sync": ["sync", tmp_path / "incoming"],
        "spool": ["spool", "show", "r", "--dir", tmp_path / "incoming"],
    }
    done = run_python(
        "-m", "tensormeter", *arguments[command], environment=os.environ | {"TENSORMETER_ENDPOINT": receiver.url}
    )
    assert done.returncode == 1
    assert "refers to another file" in done.stdout + done.stderr
    assert victim.read_text() == "years of work"


def test_the_process_that_a_given_folder_names_is_sent_no_signal(recorded, sync, tmp_path, receiver):
    """SIGUSR1 would end a process that is no agent."""
    shutil.move(recorded, tmp_path / "incoming")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with (tmp_path / "incoming" / "agent.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"{process.pid}\n")
            lock.flush()
            done = sync(tmp_path / "incoming", TENSORMETER_ENDPOINT=receiver.url)
        assert "its agent is running" in done.stdout
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0


def test_an_agent_believes_its_starter_not_the_disk(tmp_path, receiver, another_receiver):
    """If others can replace the folder, its files may not be those of the run."""
    settings = Settings(
        directory=tmp_path / "state", buffer_directory=tmp_path / "shm", endpoint=receiver.url, token=SECRET
    )
    with runs_locked(settings.directory):
        directory = RunDirectory.create(settings, "run-1", "a name")
    places = {"TENSORMETER_DIR": str(tmp_path / "state"), "TENSORMETER_BUFFER_DIR": str(tmp_path / "shm")}
    record = [sys.executable, "-c", RECORD.replace('id="r"', 'id="run-1", settings={"agent": "off"}')]
    subprocess.run(record, env=os.environ | places, check=True, capture_output=True, timeout=60)
    describe(directory.path, {"endpoint": another_receiver.url})
    assert ensure_agent(directory, settings)
    with (directory.path / "agent.lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert another_receiver.received == []
    assert tokens(receiver) == {f"Bearer {SECRET}"}


def test_a_planted_run_in_shared_memory_is_skipped(users, receiver, another_receiver):
    stranger, victim = users
    stranger.record()
    (made,) = (stranger.home / ".local/state/tensormeter/runs").glob("r@*")
    top = victim.shared / f"tensormeter-{victim.uid}"
    planted = top / "state/runs" / made.name
    shutil.copytree(made, planted)
    thesis = victim.home / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    victim.own(thesis)
    describe(planted, {"mode": "online", "endpoint": another_receiver.url}, rings=str(thesis))
    stranger.own(top)
    for command in (["sync"], ["spool", "ls"], ["spool", "purge", "r", "--yes"]):
        done = victim.tensormeter(*command, token=SECRET, endpoint=receiver.url)
        assert f"{top} belongs to user {stranger.uid}" in done.stdout + done.stderr
    assert f"belongs to user {stranger.uid}" in " ".join(victim.tensormeter("doctor").stdout.split())
    assert (thesis / "chapter1.tex").exists()
    assert receiver.received == another_receiver.received == []
    assert planted.exists()


def test_a_folder_of_another_user_is_delivered_with_the_callers_settings(users, receiver, another_receiver):
    stranger, victim = users
    stranger.record()
    (made,) = (stranger.home / ".local/state/tensormeter/runs").glob("r@*")
    incoming = victim.shared / "incoming"
    shutil.copytree(made, incoming / made.name)
    describe(incoming / made.name, {"mode": "online", "endpoint": another_receiver.url})
    stranger.own(incoming)
    done = victim.tensormeter("sync", incoming, token=SECRET, endpoint=receiver.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"because {incoming} belongs to user {stranger.uid}" in done.stdout
    assert f"endpoint {receiver.url} (run.json: {another_receiver.url})" in done.stdout
    assert another_receiver.received == []
    assert receiver.rows()[(1, (("x", 1.0),))] == 1


def test_a_run_that_others_could_have_replaced_is_delivered_with_the_callers_settings(
    users, receiver, another_receiver
):
    """TENSORMETER_DIR leads through a folder that all may write to."""
    _, victim = users
    loose = victim.shared / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    errors = victim.record(dir=loose / "state", endpoint=another_receiver.url).stderr
    assert f"other users can replace {loose / 'state/runs'}" in errors
    done = victim.tensormeter("sync", dir=loose / "state", token=SECRET, endpoint=receiver.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"because other users can write to {loose} (mode 0777)" in done.stdout
    assert another_receiver.received == []
    assert tokens(receiver) == {f"Bearer {SECRET}"}


def test_a_run_is_kept_though_another_user_has_made_its_place_in_shared_memory(users, receiver):
    """And no folder of one's own can be written to: it goes where the name cannot be foreseen, and sync finds it."""
    stranger, victim = users
    top = victim.shared / f"tensormeter-{victim.uid}"
    (top / "state/runs").mkdir(parents=True)
    stranger.own(top)
    nowhere = "/proc/nowhere"
    done = victim.record(dir=nowhere)
    assert "records nothing" not in done.stderr
    (place,) = victim.shared.glob(f"tensormeter-{victim.uid}-*")
    assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (victim.uid, 0o700)
    victim.record(dir=nowhere)
    assert list(victim.shared.glob(f"tensormeter-{victim.uid}-*")) == [place], "it is used again"
    done = victim.tensormeter("sync", "--endpoint", receiver.url, dir=nowhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert receiver.rows()[(1, (("x", 1.0),))] == 2


def test_a_place_that_another_user_has_made_is_not_used_for_runs(users):
    stranger, victim = users
    loose = victim.shared / "loose"
    (loose / "runs").mkdir(parents=True)
    loose.chmod(0o777)
    stranger.own(loose / "runs")
    errors = victim.record(dir=loose).stderr
    assert errors.count(f"{loose / 'runs'} belongs to user {stranger.uid}") == 1
    assert "is kept in memory" in errors
    assert list((loose / "runs").iterdir()) == []


def test_root_keeps_runs_in_a_folder_of_another_user(users, tmp_path):
    """As in a container that runs as root, with a folder of the host's user mounted into it. Memory would go with the container."""
    owner, _ = users
    mounted = owner.shared / "mounted"
    (mounted / "runs").mkdir(parents=True)
    owner.own(mounted)
    owner.own(mounted / "runs")
    environment = {**os.environ, "TENSORMETER_DIR": str(mounted), "TENSORMETER_BUFFER_DIR": str(tmp_path)}
    done = run_python("-c", RECORD, environment=environment, check=True)
    assert "is kept in memory" not in done.stderr
    assert f"{mounted / 'runs'} belongs to user {owner.uid}" in done.stderr
    assert [run.name[:2] for run in (mounted / "runs").glob("r@*")] == ["r@"]


def test_a_link_that_another_user_has_made_is_not_used_for_runs(users):
    """It would let runs, and the modes of their folders, go to any place of this user's."""
    stranger, victim = users
    thesis = victim.home / "thesis"
    thesis.mkdir()
    victim.own(thesis, 0o755)
    loose = victim.shared / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    (loose / "runs").symlink_to(thesis)
    os.chown(loose / "runs", stranger.uid, stranger.uid, follow_symlinks=False)
    errors = victim.record(dir=loose).stderr
    assert f"the link {loose / 'runs'} belongs to user {stranger.uid}" in errors
    assert "is kept in memory" in errors
    assert list(thesis.iterdir()) == []
    assert thesis.stat().st_mode & 0o777 == 0o755


def test_runs_in_doubt_are_listed_only_on_request(tmp_path):
    settings = Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "shm")
    with runs_locked(settings.directory):
        run = RunDirectory.create(settings, "run-1", "a name")
    assert [directory.path for directory in find_runs(settings.directory, foreign=False)[0]] == [run.path]
    run.path.chmod(0o777)
    assert find_runs(settings.directory, foreign=False) == (
        [],
        [(run.path, f"other users can write to {run.path} (mode 0777)")],
    )
    (run.path.parent).chmod(0o777)
    (refused,) = find_runs(settings.directory, foreign=False)[1]
    assert refused[0] == settings.directory


HOLD = """
import fcntl, signal, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
signal.pause()
"""


@pytest.fixture
def file_and_holder(tmp_path):
    """A file that another process has locked, and that process."""
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield path, process
        process.send_signal(signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not say who holds a lock")
def test_a_wait_for_a_lock_ends_and_names_the_holder(file_and_holder, caplog):
    path, process = file_and_holder
    entered = threading.Event()
    with locked(path, patience=0.05):
        entered.set()
    assert entered.is_set()
    assert holder(path) == f" by process {process.pid}"
    (record,) = caplog.records
    assert f"{path}, which is locked by process {process.pid}" in record.getMessage()
