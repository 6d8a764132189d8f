"""The server reports which commits survive a power failure: numbers of commits, synced in groups or one by one."""

import errno
import os
import threading

import pytest

from support.stores import append_batches
from tensormeter.errors import SettingsError, StoreError
from tensormeter.server.auth.authenticator import needed_permissions
from tensormeter.server.store import RunRef, StoreUnavailableError
from tensormeter.server.store.sqlite.disk import durability as durability_module


def position(answer, name):
    epoch, _, number = answer.headers[name].rpartition("-")
    return epoch, int(number)


class Disk:
    """Counts syncs, holds them up, or fails them."""

    def __init__(self, monkeypatch):
        self.synced = 0
        self.error: int | None = None
        self.works = threading.Event()
        self.works.set()
        monkeypatch.setattr(durability_module, "fsync", self.fsync)

    def fsync(self, descriptor):
        assert self.works.wait(300)
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        os.fsync(descriptor)
        self.synced += 1


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def append(make):
    """Stores a batch of one row."""

    def append(store, number):
        batch = make.rows("r", [(number + 1, number, {"v": 1.0})])
        return append_batches(store, batch, batch_id=f"b{number}")

    return append


def test_answers_to_batches_are_numbered_and_durable_soon(start, make, eventually):
    server = start()
    answers = [
        server.metrics(make.rows("r", [(number + 1, number, {"v": 1.0})]), batch_id=f"b{number}") for number in range(3)
    ]
    (epoch,) = {
        position(answer, name)[0] for answer in answers for name in ("Tensormeter-Commit", "Tensormeter-Durable")
    }
    numbers = [position(answer, "Tensormeter-Commit")[1] for answer in answers]
    assert numbers == sorted(set(numbers))
    asked = server.get("/api/v1/durable")
    assert asked["epoch"] == epoch
    assert asked["durable"] >= numbers[-1]
    assert asked["committed"] >= asked["durable"]
    again = server.metrics(make.rows("r", [(1, 0, {"v": 1.0})]), batch_id="b0")
    assert again.status == 200
    number = position(again, "Tensormeter-Commit")[1]

    def is_durable():  # without being asked: what the next answer says
        answer = server.metrics(make.rows("r", [(1, 0, {"v": 1.0})]), batch_id="b0")
        return position(answer, "Tensormeter-Durable")[1] >= number

    eventually(is_durable)
    server.kill()
    assert start().get("/api/v1/durable")["epoch"] != epoch


def test_senders_without_batch_ids_are_told_nothing(start, make):
    answer = start().metrics(make.rows("r", [(1, 0, {"v": 1.0})]))
    assert "Tensormeter-Commit" not in answer.headers


def test_clickhouse_says_nothing_and_sqlite_does(start_on_each, make):
    server = start_on_each()
    answer = server.metrics(make.rows("r", [(1, 0, {"v": 1.0})]), batch_id="b")
    asked = server.get("/api/v1/durable")
    assert (asked["epoch"] is None) == ("Tensormeter-Commit" not in answer.headers) == (server.clickhouse is not None)


def test_always_is_refused_for_clickhouse():
    pytest.importorskip("clickhouse_connect")
    from tensormeter.server import ServerConfig
    from tensormeter.server.store.clickhouse import parse_address

    with pytest.raises(SettingsError, match="ClickHouse decides when it syncs"):
        ServerConfig(clickhouse=parse_address("clickhouse://127.0.0.1/db"), durability="always")


def test_only_who_may_send_may_ask(start):
    server = start(environment={"TENSORMETER_TOKEN": "secret"})
    assert server.ask("/api/v1/durable")[0] == 401
    assert server.ask("/api/v1/durable", {"Authorization": "Bearer secret"})[0] == 200
    assert needed_permissions("GET", "/api/v1/durable") == ("write",)


def test_with_always_an_answer_is_durable(start, make):
    server = start("--durability", "always")
    answer = server.metrics(make.rows("r", [(1, 0, {"v": 1.0})]), batch_id="b")
    assert position(answer, "Tensormeter-Durable") == position(answer, "Tensormeter-Commit")


def test_many_commits_share_a_sync(open_store, append, disk):
    store = open_store()
    before = disk.synced
    for number in range(50):
        append(store, number)
    assert store.syncer.sync(300).durable >= 50
    assert disk.synced - before < 25


def test_with_always_many_senders_share_a_sync(open_store, append, disk):
    store = open_store(durability="always")
    before = disk.synced
    disk.works.clear()
    senders = [threading.Thread(target=append, args=(store, number)) for number in range(20)]
    for sender in senders:
        sender.start()
    disk.works.set()
    for sender in senders:
        sender.join(300)
    assert store.syncer.progress().durable >= 20
    assert disk.synced - before <= 20


def test_a_commit_during_a_sync_is_not_taken_for_durable(open_store, append, disk):
    store = open_store()
    append(store, 0)
    disk.works.clear()
    asking = threading.Thread(target=store.syncer.sync, args=(300,))
    asking.start()
    through = store.syncer.progress().committed
    append(store, 1)
    disk.works.set()
    asking.join(300)
    assert store.syncer.sync(300).durable >= through + 1


def test_nothing_is_durable_after_a_failed_sync_until_the_log_is_carried_over(
    open_store, append, disk, eventually, caplog, monkeypatch
):
    monkeypatch.setattr(durability_module, "_RETRY_DELAY", 0.01)
    store = open_store()
    carried, carry_over = [], store.syncer._carry_over
    store.syncer._carry_over = lambda: carried.append(carry_over()) or carried[-1]
    disk.error = errno.EIO
    append(store, 0)
    eventually(lambda: store.syncer._problem)
    number = store.syncer.progress().committed
    assert store.syncer.sync(0.05).durable < number
    disk.error = None
    eventually(lambda: store.syncer.progress().durable >= number)
    assert carried[-1] is True
    lines = [record.getMessage() for record in caplog.records if "sync" in record.getMessage()]
    assert len(lines) == 2, lines


def test_with_always_a_failed_sync_is_no_answer(open_store, append, disk, monkeypatch):
    monkeypatch.setattr(durability_module, "_LONGEST_WAIT", 0.05)
    monkeypatch.setattr(durability_module, "_RETRY_DELAY", 0.01)
    store = open_store(durability="always")
    disk.error = errno.EIO
    with pytest.raises(StoreUnavailableError, match="not synced to disk yet"):
        append(store, 0)
    disk.error = None
    monkeypatch.setattr(durability_module, "_LONGEST_WAIT", 300)
    assert append(store, 0).duplicate
    assert store.run(RunRef("r")).points


def test_where_files_cannot_be_synced_nothing_is_promised(open_store, append, disk, caplog):
    disk.error = errno.EINVAL
    store = open_store()
    append(store, 0)
    assert store.syncer.progress() is None
    assert store.syncer.sync(300) is None
    assert sum("cannot sync files" in record.getMessage() for record in caplog.records) == 1


def test_where_files_cannot_be_synced_always_does_not_start(open_store, disk):
    disk.error = errno.EINVAL
    with pytest.raises(StoreError, match="start with --durability group"):
        open_store(durability="always")
    disk.error = None
    open_store(durability="always")


def test_a_change_by_a_user_is_synced_too(open_store, append):
    from tensormeter.server.store import RunChanges

    store = open_store()
    append(store, 0)
    before = store.syncer.sync(300)
    store.update(RunRef("r"), RunChanges(notes="n"))
    assert store.syncer.progress().committed == before.committed + 1
