"""Locks on files: taking them, waiting, and naming their holders."""

import os
import subprocess
import sys
import threading

import pytest

from tensormeter.disk import kernel_locks
from tensormeter.disk.locks import holder, lock_holder, note_holder, try_lock, unlock, wait_for_lock
from tensormeter.disk.private import open_file

HOLD = """
import sys
from pathlib import Path
from tensormeter.disk.locks import note_holder, try_lock
note_holder(try_lock(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def other(path):
    """A process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_held_lock_is_refused_and_its_holder_is_named(path, other):
    descriptor = open_file(path)
    try:
        assert not wait_for_lock(descriptor)
        assert try_lock(path) is None
        assert holder(path) == f" by process {other.pid}"
        assert lock_holder(path) == f"process {other.pid}"
    finally:
        os.close(descriptor)


def test_the_holder_is_named_by_the_file_where_the_system_lists_no_locks(path, other, monkeypatch):
    monkeypatch.setattr(kernel_locks, "_LOCKS", path / "no such file")
    assert holder(path) == ""
    assert lock_holder(path) == f"process {other.pid}"
    path.write_text("not a number\n")
    assert lock_holder(path) == "an unknown process"


def test_waiting_ends_with_the_holder(path, other):
    descriptor = open_file(path)
    try:
        threading.Thread(target=other.stdin.close).start()
        assert wait_for_lock(descriptor, 60)
        note_holder(descriptor)
        assert path.read_text() == f"{os.getpid()}\n"
    finally:
        os.close(descriptor)


def test_an_unlocked_file_is_free_though_a_copy_of_the_descriptor_is_open(path):
    descriptor = try_lock(path)
    copy = os.dup(descriptor)
    os.close(descriptor)
    assert try_lock(path) is None
    unlock(copy)
    again = try_lock(path)
    assert again is not None
    os.close(again)
    os.close(copy)


def test_something_else_in_the_place_of_the_file_is_named(path):
    path.mkdir()
    with pytest.raises(OSError, match="a folder, but must be a regular file; remove it"):
        try_lock(path)
