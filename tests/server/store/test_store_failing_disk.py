"""A disk that fails is no damage, and nothing is called durable on its word."""

import errno
import math
import os
import sqlite3
import time
from contextlib import closing

import pytest

from support.stores import append_batches
from tensormeter.errors import StoreError
from tensormeter.server.store import RunRef, Selection, StoreUnavailableError
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.sqlite import queries, series_flush
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.integrity import start_check
from tensormeter.server.store.sqlite.integrity.damage import Damage
from tensormeter.server.store.sqlite.integrity.start_check import StartCheck
from tensormeter.server.store.sqlite.integrity.suspicion import DamageVerifier
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.server.store.sqlite.tables import commit_log

T0 = 1_750_000_000_000_000_000
ROWS = 50


def append(store, make, index):
    batch = make.rows("r", [(T0 + index * ROWS + i, index * ROWS + i, {"v": float(i)}) for i in range(ROWS)])
    append_batches(store, batch, batch_id=f"b{index}")


def points(store):
    return store.run(RunRef("r")).points


@pytest.fixture
def folder(tmp_path, make):
    """The folder of a store with requests in its journal."""
    store = SqliteStore(tmp_path / "data", flush_interval=3600)
    for index in range(3):
        append(store, make, index)
    store._flusher.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    content = (tmp_path / "data" / "tensormeter.db").read_bytes()
    store.close()
    (tmp_path / "data" / "tensormeter.db").write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def store_on(odd_disk):
    """Opens a store on an odd disk."""
    stores = []

    def open_store(**options):
        disk = odd_disk(**options)
        stores.append(SqliteStore(disk.path / "data", flush_interval=3600))
        return disk, stores[-1]

    yield open_store
    for store in stores:
        store.close()


def corrupt():
    """The error of SQLite for a damaged page, and for one that the disk cannot read."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def failing_once(monkeypatch, module, name):
    """Have a function find damage the first time it is called."""
    real, calls = getattr(module, name), []

    def function(*arguments, **options):
        calls.append(name)
        if len(calls) == 1:
            raise corrupt()
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, function)
    return calls


@pytest.mark.parametrize("manners", [{"fail": "EIO"}, {"fail": "ESTALE"}, {"fail": "EIO", "rate": 0.3}])
def test_a_disk_that_fails_during_the_check_at_the_start_is_no_damage(
    odd_disk, make, eventually, monkeypatch, caplog, manners
):
    disk = odd_disk(maps=False)  # so that each read asks the disk
    store = SqliteStore(disk.path / "data", flush_interval=3600)
    for index in range(20):
        append(store, make, index)
    store.close()
    monkeypatch.setattr(start_check, "_AGAIN", 0.01)
    caplog.set_level("INFO")
    damage, file = Damage(), disk.path / "data" / "tensormeter.db"
    suspicion = DamageVerifier(file, lambda: sqlite3.connect(file))
    disk.behave(**manners)
    check = StartCheck(file, FileSystem(maps=False), damage, suspicion.read)
    if "rate" not in manners:
        eventually(lambda: "will be repeated later" in caplog.text)
    disk.behave()
    check.wait()
    suspicion.close()
    assert damage.text() is None
    assert damage.structure is None


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("error", ["EIO", "ESTALE"])
def test_commits_become_durable_once_the_disk_works_again(store_on, make, eventually, maps, error):
    disk, store = store_on(maps=maps)
    append(store, make, 0)
    eventually(lambda: store.syncer.progress().durable == store.syncer.progress().committed)
    disk.behave(fail=error)
    with pytest.raises(StoreUnavailableError):
        append(store, make, 1)
    disk.behave()
    append(store, make, 1)
    eventually(lambda: store.syncer.progress().durable == store.syncer.progress().committed)
    eventually(lambda: store.problem() is None)
    assert points(store) == 4 * ROWS


def test_nothing_is_promised_once_the_file_system_cannot_sync(store_on, make, eventually):
    disk, store = store_on()
    append(store, make, 0)
    disk.behave(refuse=["fsync"])
    eventually(lambda: store._work_in_background() or store.syncer.progress() is None)
    disk.behave()
    append(store, make, 1)  # SQLite does not sync any more
    assert store.syncer.progress() is None
    assert store.syncer.sync(300) is None
    eventually(lambda: store.problem() is None)


def test_a_journal_row_that_the_disk_fails_to_read_for_a_moment_is_not_set_aside(folder, monkeypatch):
    calls = failing_once(monkeypatch, commit_log, "_payload")
    store = SqliteStore(folder, flush_interval=3600)
    assert len(calls) == 4
    assert store.problem() is None
    assert points(store) == 6 * ROWS
    store.close()
    with closing(sqlite3.connect(folder / "tensormeter.db")) as database:
        assert database.execute("SELECT count(*) FROM damaged").fetchone() == (0,)


def test_a_store_whose_disk_cannot_read_the_journal_does_not_open_and_loses_nothing(folder, monkeypatch):
    def fail(suspicion):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        failing_once(patch, commit_log, "_payload")
        patch.setattr(DamageVerifier, "read", fail)
        with pytest.raises(StoreError, match="the disk cannot read"):
            SqliteStore(folder, flush_interval=3600)
    store = SqliteStore(folder, flush_interval=3600)
    assert points(store) == 6 * ROWS
    store.close()


def test_a_fold_waits_until_it_is_known_whether_a_chunk_is_damaged(folder, make, eventually, monkeypatch):
    store = SqliteStore(folder, flush_interval=3600)
    store.flush()
    for index in range(3, 7):  # more than the chunk has, so that they are merged with it
        append(store, make, index)
    failing_once(monkeypatch, series_flush, "find_segments")
    with pytest.raises(StoreUnavailableError, match="is checking whether the file is damaged"):
        store.flush()
    eventually(lambda: store.problem() is None)
    store.flush()
    assert store.problem() is None
    assert points(store) == 14 * ROWS
    store.close()


def test_what_looks_damaged_while_the_disk_fails_is_read_again_before_it_is_reported(folder, monkeypatch):
    store = SqliteStore(folder, flush_interval=3600)
    store.flush()
    store.close()
    with closing(sqlite3.connect(folder / "tensormeter.db", isolation_level=None)) as database:
        database.execute("UPDATE chunk SET words = zeroblob(length(words))")
    store = SqliteStore(folder, flush_interval=3600)
    store._start_check.wait()
    monkeypatch.setattr(queries, "_DOUBT", 3600)
    store._failed_at = time.monotonic()
    for selection in (Selection(["v"]), Selection(["v"], damaged=[])):
        with pytest.raises(StoreUnavailableError, match="the disk reported"):
            store.read(RunRef("r"), selection)
    assert store.problem() is None
    store._failed_at = -math.inf
    with pytest.raises(DamagedError, match="'v'"):
        store.read(RunRef("r"), Selection(["v"]))
    assert "'v'" in store.problem()
    store.close()
