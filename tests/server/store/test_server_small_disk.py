"""A small disk that others fill: the server refuses requests and says why, and goes on by itself once there is room."""

import contextlib
import os
import random
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from support.processes import run_python
from support.stores import append_batches
from tensormeter.errors import StoreError
from tensormeter.server.store import RunRef, StoreUnavailableError
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000_000_000_000
ROWS = 2_000


def batch(make, index, run="small"):
    """Points that cannot be compressed."""
    values = random.Random(index)
    rows = [
        (T0 + (index * ROWS + i) * 1_000_000 + values.randrange(1_000_000), index * ROWS + i, {"v": values.random()})
        for i in range(ROWS)
    ]
    return make.rows(run, rows)


@pytest.fixture
def small_disk(tmp_path: Path, mount: Callable[..., None]) -> Callable[[int], Path]:
    """Mounts a disk of some MiB under the data folder that servers of a test use."""

    def mount_data(size: int) -> Path:
        disk = tmp_path / "disk"
        mount(disk, f"size={size}m")
        (disk / "data").mkdir(mode=0o700)
        (tmp_path / "data").symlink_to(disk / "data")
        return disk

    return mount_data


def fill(disk, leaving=0):
    """Leave others no room, or some bytes."""
    with contextlib.suppress(OSError), open(disk / "others", "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    if leaving:
        os.truncate(disk / "others", (disk / "others").stat().st_size - leaving)


def sizes(disk):
    return {path.name: path.stat().st_size for path in (disk / "data").iterdir()}


def is_accepted(server, make, index):
    return server.metrics(batch(make, index), batch_id=str(index)).status == 200


def send_until_refused(server, make, first):
    """Send until the server has no room; returns the number of the batch that it refused."""
    index = first
    while (answer := server.metrics(batch(make, index), batch_id=str(index))).status == 200:
        index += 1
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    return index


@pytest.mark.parametrize("killed", [False, True])
def test_a_full_disk_is_reported_and_the_server_goes_on_once_there_is_room(small_disk, start, make, eventually, killed):
    disk = small_disk(24)
    server = start()
    for index in range(40):
        assert server.metrics(batch(make, index), batch_id=str(index)).status == 200
    fill(disk)
    refused = send_until_refused(server, make, 40)
    eventually(lambda: server.ask("/healthz")[0] == 503)
    message = server.ask("/healthz")[1]["error"]["message"]
    assert "is full" in message or "No space left" in message
    assert server.get("/api/v1/runs/small")["points"] == 2 * ROWS * refused
    if killed:
        server.kill()
        server = start()
        send_until_refused(server, make, refused)
    os.truncate(disk / "others", (disk / "others").stat().st_size // 2)
    index = refused
    eventually(lambda: is_accepted(server, make, index))
    eventually(lambda: server.ask("/healthz") == (200, {"status": "ok"}))
    for index in range(refused + 1, refused + 20):
        assert server.metrics(batch(make, index), batch_id=str(index)).status == 200
    assert server.get("/api/v1/runs/small")["points"] == 2 * ROWS * (refused + 20)
    assert sizes(disk)["tensormeter.db-wal"] <= 4 << 20
    assert server.stop() == 0


def test_kills_at_any_moment_of_a_full_disk_lose_nothing(small_disk, start, make, eventually):
    disk = small_disk(16)
    chaos = random.Random(5)
    server = start()
    sent = 0
    for _ in range(4):
        for _ in range(chaos.randrange(5, 25)):
            answer = server.metrics(batch(make, sent), batch_id=str(sent))
            if answer.status != 200:
                break
            sent += 1
        fill(disk)
        for _ in range(chaos.randrange(3)):
            sent = send_until_refused(server, make, sent)
        server.kill()
        # A full disk may keep the server from starting: then it says so in one line.
        with contextlib.suppress(AssertionError):
            server = start()
        (disk / "others").unlink()
        if server.process.poll() is not None:
            server = start()
        eventually(lambda server=server, sent=sent: is_accepted(server, make, sent))
        sent += 1
        assert server.get("/api/v1/runs/small")["points"] == 2 * ROWS * sent


def test_deleting_a_run_makes_room_on_a_full_disk(small_disk, start, make, eventually):
    disk = small_disk(16)
    server = start()
    for index in range(60):
        assert server.metrics(batch(make, index, "old"), batch_id=f"old-{index}").status == 200
    fill(disk)
    refused = send_until_refused(server, make, 0)
    eventually(lambda: server.send("DELETE", "/api/v1/runs/old")[0] == 204)
    eventually(lambda: is_accepted(server, make, refused))
    assert server.get("/api/v1/runs/small")["points"] == 2 * ROWS * (refused + 1)


def test_a_log_that_had_filled_the_disk_is_emptied_before_requests_use_the_room(small_disk, start, make, eventually):
    """As a server without limits had left it: a log as large as the disk, next to a small database."""
    disk = small_disk(24)
    server = start()
    assert server.metrics(batch(make, 0), batch_id="0").status == 200
    assert server.stop() == 0
    (disk / "data" / "reserve").unlink()
    program = (
        "import os, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "try:\n"
        "    insert = 'INSERT INTO batch (id, digest, received, rejected, message)'\n"
        "    while True: database.execute(f\"{insert} VALUES (hex(randomblob(8)), zeroblob(90000), 0, 0, '')\")\n"
        "except sqlite3.OperationalError: os._exit(0)\n"
    )
    run_python("-c", program, disk / "data" / "tensormeter.db", check=True)
    log = sizes(disk)["tensormeter.db-wal"]
    assert log > 20 << 20
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    fill(disk, leaving=4 << 20)
    server = start()
    send_until_refused(server, make, 1)
    (disk / "others").unlink()
    subprocess.run(["mount", "-o", "remount,size=52m", str(disk)], check=True)
    eventually(lambda: is_accepted(server, make, 1))
    eventually(lambda: server.ask("/healthz")[0] == 200)
    eventually(lambda: sizes(disk)["tensormeter.db-wal"] < log // 4)


def test_the_log_stays_small_while_reads_overlap(tmp_path, make, monkeypatch):
    monkeypatch.setattr("tensormeter.server.store.sqlite.disk.free_space._LOG_BYTES", 1 << 20)
    store = SqliteStore(tmp_path / "store", flush_interval=3600)
    readers = [sqlite3.connect(tmp_path / "store" / "tensormeter.db", isolation_level=None) for _ in range(2)]
    log, largest = tmp_path / "store" / "tensormeter.db-wal", 0
    for index in range(120):
        reader = readers[index % 2]  # the other one still has its snapshot
        if reader.in_transaction:
            reader.execute("ROLLBACK")
        if index % 10:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM run").fetchone()
        append_batches(store, batch(make, index))
        largest = max(largest, log.stat().st_size)
        if index % 10 == 9:
            for reader in readers:
                if reader.in_transaction:
                    reader.execute("ROLLBACK")
    assert largest < 4 << 20
    assert store.run(RunRef("small")).points == 2 * ROWS * 120
    for reader in readers:
        reader.close()
    store.close()


def test_a_snapshot_that_is_kept_for_too_long_puts_requests_off(tmp_path, make, monkeypatch, eventually):
    monkeypatch.setattr("tensormeter.server.store.sqlite.disk.free_space._LOG_BYTES", 128 << 10)
    monkeypatch.setattr("tensormeter.server.store.sqlite.disk.free_space._MIB", 128 << 10)
    store = SqliteStore(tmp_path / "store", flush_interval=3600)
    append_batches(store, batch(make, 0))
    with closing(sqlite3.connect(tmp_path / "store" / "tensormeter.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM run").fetchone()
        index, refusal = 1, None
        while refusal is None:
            try:
                append_batches(store, batch(make, index))
                index += 1
            except StoreUnavailableError as error:
                refusal = str(error)
        assert "is reading an old snapshot" in refusal
        assert (tmp_path / "store" / "tensormeter.db-wal").stat().st_size < 3 << 20
    append_batches(store, batch(make, index))
    assert (tmp_path / "store" / "tensormeter.db-wal").stat().st_size < 1 << 20
    assert store.run(RunRef("small")).points == 2 * ROWS * (index + 1)
    store.close()


def test_requests_leave_the_room_that_a_checkpoint_needs(tmp_path, make, monkeypatch):
    store = SqliteStore(tmp_path / "store", flush_interval=3600)
    append_batches(store, batch(make, 0))
    free = 300 << 10
    monkeypatch.setattr(store._space._reserve, "room", lambda: (free, 0))
    with pytest.raises(StoreError, match="is full"):
        append_batches(store, batch(make, 1))
    assert "is full" in store.problem()
    free = 1 << 40
    append_batches(store, batch(make, 1))
    assert store.problem() is None
    store.close()
