"""The SQLite store by itself: flushing, merging, replaying, refusing."""

import os
import sqlite3
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.stores import append_batches, append_values
from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge
from tensormeter.server.store import (
    NotFoundError,
    PointRange,
    RunRef,
    Selection,
    StoreUnavailableError,
    TooManyPointsError,
)
from tensormeter.server.store.sqlite import read_priority
from tensormeter.server.store.sqlite.points.segments import SEGMENT_POINTS
from tensormeter.server.store.sqlite.queries import READERS
from tensormeter.server.store.sqlite.store import SqliteStore


def read(store, name="v", **query):
    lines = store.read(RunRef("r"), Selection([name], **query)).series
    assert len(lines) <= 1
    return [(int(time), value) for s in lines for time, value in zip(s.points.times, s.points.values(), strict=True)]


def test_folding_moves_points_from_the_journal_to_chunks(open_store, query):
    store = open_store()
    append_values(store, [1, 2], [1.0, 2.0])
    append_values(store, [3], [3.0])
    assert query("SELECT count(*) FROM journal") == [(2,)]
    before = (read(store), store.run(RunRef("r")).points, store.metrics(RunRef("r")))
    store.flush()
    assert query("SELECT count(*) FROM journal") == [(0,)]
    assert query("SELECT n, t_min, t_max FROM chunk") == [(3, 1, 3)]
    assert (read(store), store.run(RunRef("r")).points, store.metrics(RunRef("r"))) == before
    store.flush()
    assert query("SELECT count(*) FROM chunk") == [(1,)]


def test_replay_after_closing_without_a_fold(open_store, query, monkeypatch):
    store = open_store()
    append_values(store, [1, 2], [1.0, 2.0])
    store.flush()
    append_values(store, [3], [3], batch_id="three")
    monkeypatch.setattr(SqliteStore, "flush", lambda _: None)
    store.close()
    monkeypatch.undo()
    assert query("SELECT count(*) FROM journal") == [(1,)]
    store = open_store()
    assert read(store) == [(1, 1.0), (2, 2.0), (3, 3)]
    assert store.run(RunRef("r")).points == 3
    assert append_values(store, [3], [3], batch_id="three").duplicate
    store.close()
    assert query("SELECT count(*) FROM journal") == [(0,)]
    assert read(open_store()) == [(1, 1.0), (2, 2.0), (3, 3)]


def test_small_chunks_are_merged_and_full_ones_left_alone(open_store, query):
    store = open_store()
    for i in range(100):
        append_values(store, [i + 1], [float(i)])
        store.flush()
    sizes = [n for (n,) in query("SELECT n FROM chunk ORDER BY seq")]
    assert sum(sizes) == 100
    assert sizes == [64, 32, 4]  # as the digits of a binary counter
    n = 2 * SEGMENT_POINTS + 10
    append_values(store, np.arange(101, 101 + n), np.arange(n) / 2)
    store.flush()
    sizes = [n for (n,) in query("SELECT n FROM chunk ORDER BY seq")]
    assert sizes == [SEGMENT_POINTS, SEGMENT_POINTS, 110]
    assert read(store)[100:] == [(101 + i, i / 2) for i in range(n)]
    assert [value for _, value in read(store, start=50, stop=103)] == [*map(float, range(49, 100)), 0.0, 0.5]


def test_the_first_of_equal_times_wins_wherever_it_is(open_store, query):
    store = open_store()
    append_values(store, [1, 2, 3], [1.0, 1.0, 1.0])
    store.flush()
    append_values(store, [3, 2, 4, 4], [2.0, 2.0, 2.0, 9.0])
    append_values(store, [4, 5], [3, 3])
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 3)]
    assert read(store) == expected
    store.flush()
    assert read(store) == expected
    assert store.run(RunRef("r")).points == 5
    assert query("SELECT sum(n) FROM chunk") == [(5,)]
    append_values(store, [1, 5], [7.0, 7.0])
    store.flush()
    assert read(store) == expected
    assert store.metrics(RunRef("r"))[0].last == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(
                st.tuples(st.integers(1, 30), st.one_of(st.integers(-5, 5), st.floats(-5, 5))), min_size=1, max_size=8
            ),
            st.sampled_from(["flush", "reopen"]),
        ),
        max_size=25,
    )
)
def test_any_history_reads_like_a_dictionary(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("history")
    options = {"flush_points": 1 << 60, "flush_interval": 3600}
    store = SqliteStore(folder, **options)
    model = {}
    for action in history:
        if action == "flush":
            store.flush()
        elif action == "reopen":
            store.close()
            store = SqliteStore(folder, **options)
        else:
            for time, value in action:
                append_values(store, [time], [value])
                model.setdefault(time, value)
        if model:
            points = read(store)
            assert points == sorted(model.items())
            assert [type(value) for _, value in points] == [type(model[time]) for time, _ in points]
            assert store.metrics(RunRef("r"))[0].last == model[max(model)]
    store.close()


def test_readers_see_every_point_once_while_it_is_folded(open_store):
    store = open_store(flush_points=1, flush_interval=0.001)
    append_values(store, [1], [1.0])
    stop = threading.Event()
    failures = []

    def watch():
        last = 0
        while not stop.is_set():
            times = [time for time, _ in read(store)]
            points = store.run(RunRef("r")).points
            counted = store.metrics(RunRef("r"))[0].points
            if times != list(range(1, len(times) + 1)) or not last <= len(times) <= points <= counted:
                failures.append((last, len(times), points, counted))
            last = len(times)

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    for i in range(2, 400):
        append_values(store, [i], [float(i)])
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert failures == []
    assert len(read(store)) == 399


def test_steps_of_last_values_come_from_chunks_and_memory(open_store):
    store = open_store()
    append_values(store, np.arange(1, 1001), np.arange(1000), name=STEP_METRIC)
    append_values(store, [17], [0.5], name="early")
    append_values(store, [1000], [0.5], name="late")
    append_values(store, [1001], [0.5], name="never")
    for _ in range(2):
        steps = {metric.metric: metric.last_step for metric in store.metrics(RunRef("r"))}
        assert steps == {STEP_METRIC: 999, "early": 16, "late": 999, "never": None}
        store.flush()


def test_limits(open_store, monkeypatch):
    store = open_store(max_pending_points=40)
    append_values(store, np.arange(1, 12), np.zeros(11))
    with pytest.raises(TooManyPointsError, match="11 points, but"):
        read(store, limit=10)
    assert len(read(store, start=5, limit=11)) == 7
    append_values(store, np.arange(12, 41), np.zeros(29))
    with pytest.raises(StoreUnavailableError, match="40 points are waiting"):
        append_values(store, [41], [0.0])
    assert read(store, start=41) == []
    store.flush()
    append_values(store, [41], [0.0])
    monkeypatch.setattr("tensormeter.server.store.rules.limits.MAX_SERIES_PER_RUN", 2)
    assert append_values(store, [1], [1.0], name="second").rejected == 0
    receipt = append_values(store, [1, 2], [1.0, 1.0], name="third", batch_id="full")
    assert (receipt.rejected, "series" in receipt.message) == (2, True)
    assert append_values(store, [1, 2], [1.0, 1.0], name="third", batch_id="full").rejected == 2
    assert append_values(store, [2], [1.0], name="second").rejected == 0
    assert append_values(store, [2], [1.0], name="third", run="another").rejected == 0


def test_a_fold_that_fails_loses_nothing_and_is_reported(open_store, monkeypatch, eventually, caplog):
    store = open_store(flush_points=1, flush_interval=0.01)
    failing = threading.Event()
    failing.set()
    from tensormeter.server.store.sqlite import upkeep as sqlite

    apply_flush = sqlite.apply_flush

    def maybe(connection, folds, upto, check):
        apply_flush(connection, folds, upto, check)
        if failing.is_set():
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite, "apply_flush", maybe)
    append_values(store, [1], [1.0])
    eventually(store.problem)
    assert "disk is full" in store.problem()
    append_values(store, [2], [2.0])
    assert read(store) == [(1, 1.0), (2, 2.0)]
    assert store.run(RunRef("r")).points == 2
    failing.clear()
    eventually(lambda: store.problem() is None)
    assert read(store) == [(1, 1.0), (2, 2.0)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("late", ["planned", "half written"])
def test_a_store_that_closes_leaves_slow_flushes_to_the_next_start(open_store, query, monkeypatch, caplog, late):
    """A server with many series stops soon. The points stay in the commit log, and the next start has all of them."""
    from tensormeter.server.store.sqlite import upkeep as sqlite

    apply_flush = sqlite.apply_flush
    store = open_store()
    names = [f"m{number:03}" for number in range(200)]
    for time in (1, 2):
        append_batches(
            store,
            Batch(
                {"tensormeter.run.id": "r", "service.instance.id": "p"},
                [Gauge(name, np.array([time], np.uint64), np.array([float(time)])) for name in names],
            ),
        )

    def write_too_late(connection, folds, upto, check):
        series = [0]

        def check_later():
            series[0] += 1
            if series[0] == 100:
                store._stop_at = 0.0
            check()

        apply_flush(connection, folds, upto, check_later)

    with monkeypatch.context() as patch:
        if late == "planned":
            patch.setattr(sqlite, "_CLOSING_SECONDS", -1.0)
        else:
            patch.setattr(sqlite, "_CLOSING_SECONDS", 3600.0)
            patch.setattr(sqlite, "apply_flush", write_too_late)
        store.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stay in the commit log until the next start" in caplog.text
    assert query("SELECT (SELECT count(*) FROM journal), (SELECT count(*) FROM chunk)") == [(2, 0)]
    for journal in (2, 0):
        assert query("SELECT count(*) FROM journal") == [(journal,)]
        store = open_store()
        assert store.pending_points() == 200 * journal
        assert all(read(store, name) == [(1, 1.0), (2, 2.0)] for name in names)
        assert store.run(RunRef("r")).points == 400
        assert store.problem() is None
        store.close()
    assert len(caplog.records) == 1


def test_a_transaction_that_fails_leaves_no_trace(open_store, monkeypatch):
    from tensormeter.server.store.sqlite.tables import commit_log

    store = open_store()
    with monkeypatch.context() as patch:
        patch.setattr(
            commit_log, "append", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error"))
        )
        with pytest.raises(StoreUnavailableError, match="disk I/O error"):
            append_values(store, [1], [1.0], batch_id="a")
    with pytest.raises(NotFoundError):
        read(store)
    assert not append_values(store, [1], [1.0], batch_id="a").duplicate
    assert read(store) == [(1, 1.0)]


def test_one_store_on_a_folder(open_store, tmp_path):
    store = open_store()
    with pytest.raises(StoreError, match="in use by process"):
        open_store()
    store.close()
    store.close()
    open_store()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.projects()
    with pytest.raises(StoreUnavailableError, match="closed"):
        append_values(store, [1], [1.0])


def test_files_that_are_not_ours(open_store, tmp_path, query):
    open_store().close()
    query("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer tensormeter"):
        open_store()
    (tmp_path / "other").mkdir()
    query("CREATE TABLE t (x)", folder="other")
    with pytest.raises(StoreError, match="not a tensormeter store"):
        open_store("other")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "tensormeter.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        open_store("junk")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another"):
        open_store("file")


def test_damage_is_named(open_store, query):
    store = open_store()
    append_values(store, [1], [1.0])
    store.flush()
    query("UPDATE chunk SET words = x'00'")
    with pytest.raises(StoreError, match="damaged"):
        read(store)
    store.close()


def test_folding_stands_aside_for_readers_but_not_for_ever(open_store, monkeypatch, eventually):
    store = open_store()
    append_values(store, [1], [1.0])
    monkeypatch.setattr(read_priority, "_WAIT", 1e6)
    done = []
    flushing = threading.Thread(target=lambda: (store.flush(), done.append("flushed")))
    with store._reader():
        flushing.start()
        eventually(lambda: store._read_priority._changed._waiters)
        done.append("read")
    flushing.join()
    assert done == ["read", "flushed"]
    append_values(store, [2], [2.0])
    monkeypatch.setattr(read_priority, "_WAIT", 0.001)
    with store._reader():
        store.flush()
    append_values(store, [3], [3.0])
    monkeypatch.setattr(read_priority, "_WAIT", 1e6)
    store._max_pending_points = 1  # it is high time
    with store._reader():
        store.flush()
    assert read(store) == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for open files")
@pytest.mark.parametrize(
    "failure", [sqlite3.DatabaseError("malformed"), StoreError("damaged")], ids=lambda e: type(e).__name__
)
def test_a_store_that_cannot_be_opened_leaves_no_file_open(tmp_path, monkeypatch, failure):
    SqliteStore(tmp_path).close()

    def fail(connection):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr("tensormeter.server.store.sqlite.store.find_missing_rollups", fail)
        with pytest.raises(StoreError) as caught:
            SqliteStore(tmp_path)
    names = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if is_open(number)]
    assert [name for name in names if name.startswith(str(tmp_path))] == []
    assert caught.value is failure or caught.value.__cause__ is failure
    SqliteStore(tmp_path).close()


def is_open(number):
    return os.path.islink(f"/proc/self/fd/{number}")


def statements_of(store, call):
    """The number of statements that a call reads with."""
    statements = []
    connections = [store._readers.get() for _ in range(READERS)]
    for connection in connections:
        connection.set_trace_callback(statements.append)
        store._readers.put(connection)
    call()
    return len(statements)


def test_many_series_are_read_with_few_statements(open_store):
    store = open_store()
    times = np.array([10**18], np.uint64)
    for rank in range(300):
        resource = {"service.name": "p", "tensormeter.run.id": "r", "service.instance.id": f"rank {rank}"}
        append_batches(
            store,
            Batch(resource, [Gauge(STEP_METRIC, times, np.array([7])), Gauge("v", times, np.array([rank + 0.5]))]),
        )
    store.flush()
    ref = RunRef("r", "p")
    assert statements_of(store, lambda: store.read(ref, Selection(["v", STEP_METRIC]))) < 30
    assert sorted(float(series.points.floats()[0]) for series in store.read(ref, Selection(["v"])).series) == [
        rank + 0.5 for rank in range(300)
    ]

    def scan():
        processes = [summary.process for summary in store.processes(ref)]
        rollups = [*store.scan(ref, processes, Selection(["v"]), PointRange(by_step=True), 128)]
        assert [rollup.process for rollup in rollups] == processes
        assert {int(series.steps[0]) for rollup in rollups for series in rollup.series} == {7}

    assert statements_of(store, scan) < 40
