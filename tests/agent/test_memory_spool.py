"""Spools that move into shared memory while the disk fails, and back."""

import shutil
from contextlib import closing

import pytest

from tensormeter import Settings
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.spool import memory_spool as module
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.memory_spool import MemorySpool, works
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SpoolError


@pytest.fixture
def directory(tmp_path):
    settings = Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "rings")
    with runs_locked(settings.directory):
        return RunDirectory.create(settings, "r", "r")


@pytest.fixture
def disk(directory):
    with closing(Spool(directory.spool)) as spool:
        yield spool


@pytest.fixture
def memory_spool(directory):
    return MemorySpool(directory)


def put(spool, *bodies, position=0):
    cursors = {0: Cursor(position, position)}
    spool.put([Encoded("metrics", body, 1) for body in bodies], ["a", "b"], "p", cursors, started=True, ended=False)


def waiting(spool, destination):
    requests, sequence = [], 0
    while head := spool.head(destination, after=sequence):
        sequence = head.sequence
        requests.append((head.id, spool.read(sequence).body))
    return requests


def test_what_waits_moves_and_comes_back_with_its_ids_in_its_order(disk, memory_spool):
    put(disk, b"1", b"2", b"3", position=24)
    disk.done("a", 1)
    disk.count_loss("refused", 5)
    before = {name: waiting(disk, name) for name in ("a", "b")}
    with closing(memory_spool.open(disk, 1 << 30)) as memory:
        assert {name: waiting(memory, name) for name in ("a", "b")} == before
        assert memory.cursor("p", 0).position == 24
        assert memory.lifecycle("p") == (True, False)
        put(memory, b"4", position=32)
        memory.done("a", 2)
        memory.done("b", 1)
        memory.count_loss("refused", 2)
        after = {name: waiting(memory, name) for name in ("a", "b")}
    assert [body for _, body in after["a"]] == [b"3", b"4"]
    assert [body for _, body in after["b"]] == [b"2", b"3", b"4"]
    memory_spool.give_back(disk)
    assert {name: waiting(disk, name) for name in ("a", "b")} == after
    assert disk.cursor("p", 0).position == 32
    assert disk.losses() == {"refused": 7}
    assert not memory_spool.exists()


def test_an_agent_that_is_killed_while_it_goes_back_moves_nothing_twice(disk, memory_spool, tmp_path):
    put(disk, b"1")
    with closing(memory_spool.open(disk, 1 << 30)) as memory:
        put(memory, b"2", position=16)
    kept = shutil.copytree(memory_spool.spool.parent, tmp_path / "kept")
    memory_spool.give_back(disk)
    expected = waiting(disk, "a")
    disk.done("a", disk.head("a").sequence)
    shutil.copytree(kept, memory_spool.spool.parent, dirs_exist_ok=True)
    assert memory_spool.exists()
    memory_spool.give_back(disk)
    assert waiting(disk, "a") == expected[1:]
    assert not memory_spool.exists()


def test_a_second_move_is_another_one(disk, memory_spool):
    for number in range(3):
        with closing(memory_spool.open(disk, 1 << 30)) as memory:
            put(memory, b"%d" % number, position=8 * number)
        memory_spool.give_back(disk)
    assert [body for _, body in waiting(disk, "b")] == [b"0", b"1", b"2"]


def test_what_cannot_be_read_waits_on_the_disk(disk, memory_spool, monkeypatch):
    """The last requests are still in memory, and are sent under their ids."""
    put(disk, b"before")
    with closing(Spool(disk.path)) as other:  # as another agent, which has not put the first one
        put(other, b"recent")
        recent = waiting(other, "a")[-1:]

        def refuse(*_):
            raise SpoolError("the disk does not answer")

        monkeypatch.setattr(module, "_copy", refuse)
        other.pending()
        with closing(memory_spool.open(other, 1 << 30)) as memory:
            assert waiting(memory, "a") == recent
            assert memory.elsewhere == 2
            assert memory.pending() == 4
            memory.done("a", memory.head("a").sequence)
            put(memory, b"new", position=8)
    memory_spool.give_back(disk)
    assert [body for _, body in waiting(disk, "a")] == [b"before", b"new"]
    assert [body for _, body in waiting(disk, "b")] == [b"before", b"recent", b"new"]


def test_more_than_memory_holds_waits_on_the_disk(disk, memory_spool, monkeypatch):
    monkeypatch.setattr(module, "_MOST_COPIED", 3)
    put(disk, b"1", b"22", b"333", position=24)
    with closing(memory_spool.open(disk, 1 << 30)) as memory:
        assert [body for _, body in waiting(memory, "a")] == [b"1", b"22"]
        assert memory.elsewhere == 2
        put(memory, b"4", position=32)
        memory.done("a", 1)
    with closing(memory_spool.open(None, 1 << 30)) as memory:
        assert memory.elsewhere == 2, "another agent knows that, too"
    memory_spool.give_back(disk)
    assert [body for _, body in waiting(disk, "a")] == [b"22", b"333", b"4"]


def test_the_state_of_destinations_goes_along(directory, disk, memory_spool):
    state = directory.path / "exporters" / "a" / "appended.json"
    state.parent.mkdir(parents=True)
    state.write_text("first")
    with closing(memory_spool.open(disk, 1 << 30)):
        there = memory_spool.spool.with_name("exporters") / "a" / "appended.json"
        assert there.read_text() == "first"
        there.write_text("second")
    memory_spool.give_back(disk)
    assert state.read_text() == "second"


@pytest.mark.parametrize("manners", [{}, {"fail": "EIO"}, {"fail_writes": "EDQUOT"}, {"fail_writes": "EROFS"}])
def test_whether_a_disk_works(odd_disk, manners):
    disk = odd_disk()
    path = disk.path / "spool.sqlite"
    Spool(path).close()
    disk.behave(**manners)
    assert works(path) == (not manners)
