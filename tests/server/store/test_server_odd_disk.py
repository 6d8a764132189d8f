"""A server on a disk that fails, hangs, or lacks what local disks have: it says so, goes on by itself, and loses nothing."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from support.processes import run_python
from support.stores import append_batches
from tensormeter.server.store import RunRef
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000_000_000_000
ROWS = 20


def batch(make, index):
    rows = [(T0 + index * ROWS + i, index * ROWS + i, {"v": float(index * ROWS + i)}) for i in range(ROWS)]
    return make.rows("odd", rows)


def is_accepted(server, make, index):
    answer = server.metrics(batch(make, index), batch_id=str(index))
    assert answer.status in (200, 503)
    assert answer.status == 200 or int(answer.headers["Retry-After"]) > 0
    return answer.status == 200


def health(server):
    status, document = server.ask("/healthz")
    return "" if status == 200 else document["error"]["message"]


def points(server):
    return server.get("/api/v1/runs/odd")["points"]


@pytest.fixture
def mounted(odd_disk, tmp_path):
    """Mounts an odd disk under the data folder that servers of a test use."""

    def mount(**options):
        disk = odd_disk(**options)
        (disk.backing / "data").mkdir(mode=0o700)
        (tmp_path / "data").symlink_to(disk.path / "data")
        return disk

    return mount


@contextmanager
def behaving(disk, **manners) -> Iterator[None]:
    disk.behave(**manners)
    try:
        yield
    finally:
        disk.behave()


READ_ONLY = (
    ({"fail_writes": "EDQUOT"}, "Disk quota exceeded"),
    ({"fail_writes": "EROFS"}, "Read-only file system"),
    ({"fail_writes": "ENOSPC"}, "full"),
    ({"fail_writes": "EIO"}, "Input/output error"),
)
FAILING = (
    ({"fail": "EIO"}, "Input/output error"),
    ({"fail": "ESTALE"}, "Stale file handle"),
    ({"fail": "EIO", "rate": 0.3}, "Input/output error"),
)


@pytest.mark.parametrize(
    ("manners", "reason", "maps"),
    [*((*case, True) for case in (*READ_ONLY, *FAILING)), (*FAILING[0], False), (*READ_ONLY[0], False)],
)
def test_a_disk_that_fails_for_a_while(mounted, start, make, eventually, manners, reason, maps):
    disk = mounted(maps=maps)
    server = start()
    for index in range(5):
        assert is_accepted(server, make, index)
    sent = 5
    with behaving(disk, **manners):
        while is_accepted(server, make, sent):
            sent += 1
        eventually(lambda: reason in health(server))
        if "fail_writes" in manners:
            assert points(server) == 2 * ROWS * sent
    eventually(lambda: is_accepted(server, make, sent))
    eventually(lambda: health(server) == "")
    assert points(server) == 2 * ROWS * (sent + 1)
    assert "restore" not in server.stderr
    assert server.stop() == 0
    assert points(start()) == 2 * ROWS * (sent + 1)


def test_a_disk_that_hangs(mounted, start, make, eventually):
    disk = mounted()
    server = start()
    assert is_accepted(server, make, 0)
    answers = []
    with behaving(disk, hang=True):
        sender = threading.Thread(target=lambda: answers.append(is_accepted(server, make, 1)))
        sender.start()
        eventually(lambda: "has not responded" in health(server))
        sender.join(300)
        assert answers == [False]  # it may be stored all the same
        assert not is_accepted(server, make, 1)
        assert server.ask("/api/v1/runs/odd")[0] == 503
    eventually(lambda: is_accepted(server, make, 1))
    eventually(lambda: health(server) == "")
    assert points(server) == 2 * ROWS * 2
    assert server.stop() == 0


def test_a_stop_does_not_wait_for_a_disk_that_hangs():
    program = (
        "import sys, threading\n"
        "from tensormeter.server.slow_disk import exit_if_stalled\n"
        "exit_if_stalled(lambda: 'the disk of /data has not answered for 9 s', 0.01)\n"
        "threading.Event().wait()\n"
    )
    ended = run_python("-c", program, check=True)
    assert "has not answered for 9 s; the server exits without waiting for the disk" in ended.stderr


def test_a_slow_disk_is_no_disk_that_hangs(mounted, start, make):
    disk = mounted()
    server = start()
    with behaving(disk, latency=0.2):
        assert is_accepted(server, make, 0)
        assert health(server) == ""
    assert points(server) == 2 * ROWS


def test_without_shared_memory_maps_the_store_has_a_rollback_journal(mounted, start, make, tmp_path):
    disk = mounted(maps=False)
    elsewhere = start(folder=disk.backing / "data")
    assert is_accepted(elsewhere, make, 0)
    elsewhere.kill()  # and leaves a write-ahead log
    server = start()
    assert "no shared memory maps" in server.stderr
    for index in range(1, 5):
        assert is_accepted(server, make, index)
    server.kill()
    server = start()
    assert points(server) == 2 * ROWS * 5
    assert server.stop() == 0
    assert not (disk.backing / "data" / "tensormeter.db-wal").exists()
    elsewhere = start(folder=disk.backing / "data")
    assert is_accepted(elsewhere, make, 5)
    assert (disk.backing / "data" / "tensormeter.db-wal").exists()
    assert points(elsewhere) == 2 * ROWS * 6


def serve(tmp_path):
    return run_python("-m", "tensormeter", "serve", "--port", "0", "--data", tmp_path / "data")


def test_without_locks_it_does_not_start_and_says_why(mounted, tmp_path):
    mounted(locks=False)
    refused = serve(tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "has no file locks" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_without_sync_rename_link_and_fallocate_it_starts(mounted, start, make):
    disk = mounted()
    disk.behave(refuse=["fsync", "rename", "link", "fallocate"])
    server = start()
    assert "cannot sync files" in server.stderr
    assert is_accepted(server, make, 0)
    assert server.stop() == 0
    server = start()
    assert points(server) == 2 * ROWS
    assert health(server) == ""


@pytest.mark.parametrize(
    ("manners", "reason"),
    [
        ({"fail": "EIO"}, "Input/output error"),
        ({"fail": "ESTALE"}, "Stale file handle"),
        ({"fail_writes": "EROFS"}, "Read-only file system"),
        ({"fail_writes": "EDQUOT"}, "is full (Disk quota exceeded)"),
        ({"fail_writes": "ENOSPC"}, "is full (No space left on device)"),
    ],
)
def test_a_disk_that_fails_when_the_server_starts_and_when_it_stops(mounted, start, make, tmp_path, manners, reason):
    disk = mounted()
    server = start()
    assert is_accepted(server, make, 0)
    with behaving(disk, **manners):
        assert server.stop() == 0
        refused = serve(tmp_path)
    assert "Traceback" not in server.stderr
    assert (refused.returncode, refused.stdout) == (1, "")
    assert reason in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert points(start()) == 2 * ROWS


def test_a_file_system_that_cannot_sync_any_more(mounted, make, tmp_path):
    disk = mounted()
    store = SqliteStore(tmp_path / "data", flush_interval=3600)
    append_batches(store, batch(make, 0))
    disk.behave(refuse=["fsync"])
    store._work_in_background()
    assert "checkpoint" in (store.problem() or "")
    store._work_in_background()
    assert store.problem() is None
    append_batches(store, batch(make, 1))
    store.flush()
    assert store.run(RunRef("odd")).points == 2 * ROWS * 2
    store.close()


def test_damage_is_confirmed_before_it_is_reported(start, make, eventually):
    server = start()
    assert is_accepted(server, make, 0)
    assert server.stop() == 0
    file = server.folder / "tensormeter.db"
    with closing(sqlite3.connect(file)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as damaged:
        damaged.seek((page - 1) * size)
        damaged.write(b"\xff" * size)
    server = start()
    server.ask("/api/v1/runs/odd/events")
    eventually(lambda: "is damaged" in health(server) and "restore the data folder" in health(server))
    assert is_accepted(server, make, 1)
