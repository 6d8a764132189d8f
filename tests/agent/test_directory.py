"""Run directories: what they hold, who may see it, and the locks."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tensormeter.agent import launch
from tensormeter.agent.run_directory.directory import RunDirectory, list_runs, runs_locked
from tensormeter.errors import SpoolError
from tensormeter.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "shm", token="secret")


@pytest.fixture
def directory(settings):
    with runs_locked(settings.directory):
        return RunDirectory.create(settings, "run-1", "a name")


def test_the_directory_describes_its_run_without_secrets(directory, settings):
    assert directory.path == settings.directory / "runs" / f"run-1@{socket.gethostname()}"
    run = json.loads((directory.path / "run.json").read_text())
    assert (run["run_id"], run["name"], run["host"]) == ("run-1", "a name", socket.gethostname())
    assert "secret" not in (directory.path / "run.json").read_text()
    assert RunDirectory.open(directory.path).settings() == settings.replace(token=None)


def test_secrets_come_from_the_environment(directory, settings, monkeypatch):
    monkeypatch.setenv("TENSORMETER_TOKEN", "other")
    assert RunDirectory.open(directory.path).settings().token == "other"


def test_everything_is_private(directory):
    directory.make_ring_directory()
    for path in (directory.path, directory.rings, directory.rings.parent):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_ring_directory_that_others_can_write_to_is_refused(directory, mode):
    directory.rings.parent.mkdir(parents=True)
    directory.rings.parent.chmod(mode)
    with pytest.raises(PermissionError, match="only this user"):
        directory.make_ring_directory()


def test_a_ring_directory_that_is_a_link_is_refused(directory, tmp_path):
    directory.rings.parent.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    directory.rings.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="only this user"):
        directory.make_ring_directory()


def test_shared_memory_need_not_be_sticky(directory):
    """As Kubernetes mounts it: the run's own folder counts, and no other user can make it."""
    directory.rings.parent.parent.mkdir()
    directory.rings.parent.parent.chmod(0o777)
    directory.make_ring_directory()
    (directory.rings / "a.ring").touch()
    assert [path.name for path in directory.ring_files()] == ["a.ring"]


@pytest.mark.parametrize("level", ["rings", "parent"])
def test_rings_in_a_folder_that_others_can_write_to_are_not_read(directory, level):
    directory.make_ring_directory()
    (directory.rings / "a.ring").touch()
    (directory.rings if level == "rings" else directory.rings.parent).chmod(0o777)
    assert directory.ring_files() == []
    assert "other users can write to" in directory.rings_weakness


def test_a_link_of_a_ring_is_not_read(directory, tmp_path):
    directory.make_ring_directory()
    (tmp_path / "a.ring").touch()
    (directory.rings / "a.ring").symlink_to(tmp_path / "a.ring")
    assert directory.ring_files() == []


def test_rings_of_two_state_directories_do_not_meet(settings, tmp_path):
    paths = set()
    for name in ("one", "two"):
        other = settings.replace(directory=tmp_path / name)
        with runs_locked(other.directory):
            paths.add(RunDirectory.create(other, "run-1", "n").rings)
    assert len(paths) == 2


def test_making_it_again_keeps_what_is_there(directory, settings):
    directory.spool.write_text("x")
    with runs_locked(settings.directory):
        again = RunDirectory.create(settings, "run-1", "another name")
    assert again.path == directory.path
    assert again.rings == directory.rings
    assert directory.spool.read_text() == "x"


def test_rings_are_found_in_memory_and_on_disk(directory):
    directory.make_ring_directory()
    directory.rings_on_disk.mkdir()
    for path in (directory.rings / "a.ring", directory.rings_on_disk / "b.ring", directory.rings / "c.new"):
        path.touch()
    assert {path.name for path in directory.ring_files()} == {"a.ring", "b.ring"}


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        '{"rings": 5}',
        "[" * 100_000,
        '{"run_id": "a", "host": "../..", "rings": "/", "settings": {}}',
        '{"run_id": "../a", "host": "h", "rings": "/", "settings": {}}',
        '{"run_id": "a", "host": "h", "rings": "/", "settings": []}',
    ],
)
def test_what_is_no_run_directory_is_refused_and_left_out(directory, settings, contents):
    broken = settings.directory / "runs" / "broken@here"
    broken.mkdir()
    (broken / "run.json").write_text(contents)
    with pytest.raises(SpoolError, match="is not a run directory"):
        RunDirectory.open(broken)
    assert [run.run["run_id"] for run in list_runs(settings.directory)] == ["run-1"]


def test_a_file_that_goes_while_a_given_directory_is_looked_through_is_no_fault(directory, monkeypatch):
    """Its agent is at work, and makes and removes files."""
    monkeypatch.setattr("os.walk", lambda path: [(path, [], ["gone", "run.json"])])
    assert RunDirectory.open(directory.path, given=True).doubt == "the folder was given by its path"


def test_there_may_be_no_runs(tmp_path):
    assert list_runs(tmp_path / "nowhere") == []


def test_removal_leaves_nothing(directory, settings, tmp_path):
    directory.make_ring_directory()
    (directory.rings / "a.ring").touch()
    directory.spool.touch()
    directory.remove()
    assert list_runs(settings.directory) == []
    assert not directory.path.exists()
    assert not directory.rings.exists()


def test_the_agents_lock_is_held_by_one_descriptor_at_a_time(directory):
    lock = directory.try_agent_lock()
    assert lock is not None
    assert directory.try_agent_lock() is None
    assert directory.agent_pid() is None
    os.pwrite(lock, b"123\n", 0)
    assert directory.agent_pid() == 123
    os.close(lock)
    again = directory.try_agent_lock()
    assert again is not None
    os.close(again)


@pytest.fixture
def forked():
    """Forks a child that does nothing but live, as DataLoader workers do, until the test ends."""
    children = []

    def fork():
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"!")
            signal.pause()
            os._exit(0)
        children.append(child)
        os.close(writing)
        with open(reading, "rb") as lives:
            assert lives.read(1) == b"!"  # what is to be done after a fork is done
        return child

    yield fork
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_forked_while_runs_are_locked_does_not_keep_them_locked(settings, forked):
    with runs_locked(settings.directory):
        forked()
    with (settings.directory / "runs" / ".lock").open("r+b") as lock:
        assert fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None  # it raises where a process holds the lock


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_child_forked_while_an_agent_is_started_does_not_keep_its_lock(
    kind, settings, directory, forked, monkeypatch
):
    """Another thread may fork at any time. Any process that holds the lock passes for the run's agent."""
    started = []

    def start(_directory, _settings, lock, **_):
        child = forked()
        started.append(os.dup(lock))  # the agent's
        return child

    monkeypatch.setattr(launch, "_spawn", start)
    monkeypatch.setattr(launch, "_start_thread", start)
    assert launch.ensure_agent(directory, settings.replace(agent=kind))
    assert not launch.ensure_agent(directory, settings.replace(agent=kind))
    os.close(started[0])  # it dies
    lock = directory.try_agent_lock()
    assert lock is not None
    os.close(lock)


def test_an_agent_whose_thread_cannot_be_started_leaves_the_lock(settings, directory, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            launch.ensure_agent(directory, settings.replace(agent="thread"))
    lock = directory.try_agent_lock()
    assert lock is not None
    os.close(lock)


HOLDING = """
import sys, signal, os
from pathlib import Path
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
path = Path(sys.argv[1])
lock = RunDirectory.open(path).try_agent_lock()
with runs_locked(path.parents[1]):
    print(lock is not None, flush=True)
    signal.pause()
"""


def test_a_killed_holder_frees_both_locks(directory, settings):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, directory.path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        assert directory.try_agent_lock() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(300)
        process.stdout.close()
    lock = directory.try_agent_lock()
    assert lock is not None
    os.close(lock)
    with runs_locked(settings.directory), runs_locked(settings.directory.parent):
        assert list_runs(settings.directory)
