"""Requests with many series in the SQLite store: what is kept in memory and in the file for each of them."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from support.stores import append_batches
from tensormeter.otlp import number_blocks
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge, Histogram
from tensormeter.server.store import DamagedError, RunChanges, RunRef, Selection, TooManyPointsError
from tensormeter.server.store.rules import limits
from tensormeter.server.store.rules.key_table import KeyTable
from tensormeter.server.store.sqlite import bundle_flush
from tensormeter.server.store.sqlite.integrity.inspection import Inspection, open_read_only
from tensormeter.server.store.sqlite.points import step_lookup
from tensormeter.server.store.sqlite.points.number_parts import NumberIndex
from tensormeter.server.store.sqlite.retention import Retention
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.server.store.sqlite.tables import names

T0 = 1_750_000_000 * 10**9
RUN = RunRef("wide", "p")
OTHER = {"service.name": "p", "tensormeter.run.id": "other", "service.instance.id": "i"}


def wide_batch(numbers, step, rank=0, points=1):
    """A request of one rank with some points of each metric."""
    times = np.arange(T0 + step * 10**9, T0 + step * 10**9 + points, dtype=np.uint64)
    resource = {"service.name": "p", "tensormeter.run.id": "wide", "service.instance.id": f"rank-{rank}"}
    return Batch(resource, [Gauge(f"m{name:06}", times, np.arange(points) + float(step)) for name in numbers])


def open_store(folder, **options):
    return SqliteStore(folder, flush_interval=3600, **options)


def values_of(store, *metrics):
    reading = store.read(RUN, Selection(metrics))
    return {(series.metric, series.process): series.points.values() for series in reading.series}


def test_a_key_table_finds_what_was_added_and_forgets_when_full():
    rng = np.random.default_rng(0)
    keys = rng.integers(1 << 63, size=(50_000, 2)).astype(np.uint64)
    keys[:1000, 1] = 7  # all of these begin at the same slot
    rows = np.arange(1, len(keys) + 1) // 2 + 1
    table = KeyTable(60_000)
    for first in range(0, len(keys), 7000):
        table.add(keys[first : first + 7000], rows[first : first + 7000])
    assert np.array_equal(table.find(keys), rows)
    assert not table.find(keys ^ np.uint64(1)).any()
    table.add(keys[:20_000] ^ np.uint64(1), rows[:20_000])
    assert len(table) == 20_000
    assert not table.find(keys).any()


@pytest.mark.parametrize("compiled", [True, False])
def test_points_of_many_series_are_found_in_memory_in_the_file_and_after_a_restart(tmp_path, monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(number_blocks, "_extension", None)
    store = open_store(tmp_path)
    for step in range(3):
        for rank in range(2):
            append_batches(store, wide_batch(range(300), step, rank))
    cursor = store.read(RUN, Selection(["m000007"])).cursor
    append_batches(store, wide_batch([7, 8, 7], 3))  # the second copy of a point is ignored
    expected = {("m000007", "rank-0"): [0.0, 1.0, 2.0, 3.0], ("m000007", "rank-1"): [0.0, 1.0, 2.0]}

    def check():
        assert values_of(store, "m000007") == expected
        assert len(values_of(store, *(f"m{name:06}" for name in range(300)))) == 600
        metrics = store.metrics(RUN)
        assert len(metrics) == 600
        assert {metric.last for metric in metrics if metric.metric == "m000008"} == {2.0, 3.0}
        summary = store.run(RUN).summary["m000007"]
        assert (summary.min, summary.max, summary.last) == (0.0, 3.0, 3.0)

    check()
    since = store.read(RUN, Selection(["m000007"], after=cursor))
    assert not since.complete
    assert [series.points.values() for series in since.series] == [[3.0]]
    (change,) = store.changes(cursor).changes
    assert list(change.metrics) == ["m000007", "m000008"]
    store.close()
    store = open_store(tmp_path)
    check()
    append_batches(store, wide_batch(range(300), 4))
    store.flush()
    expected["m000007", "rank-0"].append(4.0)
    assert values_of(store, "m000007") == expected
    store.close()


def test_after_a_restart_the_rows_of_many_series_are_found_without_a_statement_for_each(tmp_path):
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(3000), 0), wide_batch(range(1500), 0, 1))
    rows = store._writer.execute("SELECT count(*), max(id) FROM series").fetchone()
    store._abandon()
    store = open_store(tmp_path)
    statements = []
    store._writer.set_trace_callback(statements.append)
    append_batches(store, wide_batch(range(3000), 1), wide_batch(range(1500), 1, 1))
    store._catalog.forget()
    append_batches(store, wide_batch(range(3000), 2), wide_batch(range(1500), 2, 1))
    store._writer.set_trace_callback(None)
    if number_blocks._extension is not None:
        assert len([text for text in statements if "FROM series" in text]) < 20
    assert store._writer.execute("SELECT count(*), max(id) FROM series").fetchone() == rows
    assert values_of(store, "m001499") == {("m001499", f"rank-{rank}"): [0.0, 1.0, 2.0] for rank in range(2)}
    store.close()


def test_many_series_survive_a_kill_and_keep_their_rows(tmp_path):
    """Points of a store that was not closed are replayed from the commit log, and later requests find the same series."""
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(100), 0), wide_batch(range(50, 150), 0, 1))
    rows = store._writer.execute("SELECT count(*), max(id) FROM series").fetchone()
    store._abandon()
    store = open_store(tmp_path)
    assert store.pending_points() == 200
    append_batches(store, wide_batch(range(100), 1), wide_batch(range(50, 150), 1, 1))
    assert store._writer.execute("SELECT count(*), max(id) FROM series").fetchone() == rows
    assert values_of(store, "m000060") == {("m000060", f"rank-{rank}"): [0.0, 1.0] for rank in range(2)}
    assert store.problem() is None
    store.close()


def test_series_beyond_the_limit_are_refused_and_the_others_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_SERIES_PER_RUN", 120)
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(100), 0))
    receipt = append_batches(store, wide_batch(range(150), 1, points=2))
    assert (receipt.rejected, receipt.message) == (60, f"60 data points: {limits.too_many_series()}")
    receipt = append_batches(store, wide_batch(range(150), 2))
    assert receipt.rejected == 30
    assert len(store.metrics(RUN)) == 120
    assert values_of(store, "m000119") == {("m000119", "rank-0"): [1.0, 2.0, 2.0]}
    store.close()


def test_names_beyond_the_limit_are_refused_and_known_names_go_on(tmp_path, monkeypatch):
    """Limits count names, so that further ranks may send the same names. The names are the same after a restart."""
    monkeypatch.setattr(limits, "MAX_NAMES_PER_RUN", 120)
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(100), 0), wide_batch(range(100), 0, 1))
    receipt = append_batches(store, wide_batch(range(150), 1, points=2), wide_batch(range(50, 110), 1, 1))
    assert (receipt.rejected, receipt.message) == (60, f"60 data points: {limits.too_many_names()}")
    assert "120 metric names" in receipt.message
    step = Batch(wide_batch([], 0).resource, [Gauge("tensormeter.dropped", np.array([T0], np.uint64), np.ones(1))])
    assert append_batches(store, step).rejected == 0
    assert append_batches(store, wide_batch(range(150), 2, 2)).rejected == 30
    assert append_batches(store, Batch(OTHER, wide_batch(range(110, 220), 0).series)).rejected == 0
    store._abandon()
    store = open_store(tmp_path)  # replays the requests, of which points were refused
    assert store.problem() is None
    for _ in range(2):
        assert append_batches(store, wide_batch(range(150), 3), wide_batch(range(150), 3, 3)).rejected == 60
        assert len(store.names(RUN)) == 121
        assert values_of(store, "m000119")["m000119", "rank-0"] == [1.0, 2.0, 3.0]
        store.close()
        store = open_store(tmp_path)
    store.close()


def test_the_names_of_a_run_are_read_once_and_refused_requests_leave_none(tmp_path, monkeypatch):
    """A request that fails after it has added names does not use up the limit, and the names stay in memory otherwise."""
    monkeypatch.setattr(limits, "MAX_NAMES_PER_RUN", 20)
    store = open_store(tmp_path)
    odd = wide_batch([], 0).resource, [Gauge(name, np.array([T0], np.uint64), np.ones(1)) for name in ("a\nb", "", "c")]
    append_batches(store, Batch(*odd), *(wide_batch(range(8), 0, rank) for rank in range(3)))
    store.close()
    store = open_store(tmp_path)

    def fail():
        if store._writer.execute("SELECT total(series) FROM run").fetchone()[0] > 27:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        append_batches(store, wide_batch(range(100, 120), 1), wide_batch([1], 1, 1), check=fail)
    assert append_batches(store, wide_batch(range(16), 1), Batch(*odd)).rejected == 1
    statements = []
    store._writer.set_trace_callback(statements.append)
    assert append_batches(store, wide_batch(range(22), 2)).rejected == 4
    assert not [text for text in statements if "group_concat" in text]
    assert len(store.names(RUN)) == 20
    store.close()


def test_distributions_count_as_names_like_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_NAMES_PER_RUN", 11)
    store = open_store(tmp_path)
    batch = wide_batch(range(10), 0)
    ones = np.ones(1, np.uint64)
    histograms = [
        Histogram(
            name, batch.series[0].times, ones, ones, *(np.ones(1),) * 3, np.array([1.0]), np.array([[1, 0]], np.uint64)
        )
        for name in ("h", "m000001", "i", "h", "j")
    ]
    receipt = append_batches(store, Batch(batch.resource, [*batch.series, *histograms]))
    assert (receipt.rejected, receipt.message) == (2, f"2 data points: {limits.too_many_names()}")
    assert len(store.names(RUN)) == 11
    store.close()


def test_distributions_and_numbers_of_one_request_are_stored_together(tmp_path):
    store = open_store(tmp_path)
    batch = wide_batch(range(10), 0)
    ones = np.ones(1, np.uint64)
    histogram = Histogram(
        "h", batch.series[0].times, ones, ones, np.ones(1), np.ones(1), np.ones(1), np.array([1.0]), np.array([[1, 0]])
    )
    append_batches(store, Batch(batch.resource, [*batch.series, histogram]))
    assert len(store.metrics(RUN)) == 11
    store.flush()
    assert len(store.read(RUN, Selection(["h"], numeric=False)).series) == 1
    store.close()


WIDE = 1100
"""Number of series of a rank, so that a run's short series share bundles."""


def findings_of(folder):
    with closing(open_read_only(folder / "tensormeter.db")) as connection:
        inspection = Inspection(connection)
        return [str(finding) for finding in inspection.all(full=True)], inspection.counts


def count(store, table, condition="1"):
    return store._writer.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()[0]


def change(folder, *statements):
    with closing(sqlite3.connect(folder / "tensormeter.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("full", [65_536, 2000])
def test_short_series_share_bundles_and_are_read_like_others(tmp_path, monkeypatch, full):
    """Points are in memory, in bundles, or in segments if bundles are full, and reads return the same."""
    monkeypatch.setattr(bundle_flush, "_FULL", full)
    monkeypatch.setattr(bundle_flush, "_LONG", 4)
    store = open_store(tmp_path)
    steps = Gauge("tensormeter.step", np.array([T0], np.uint64), np.array([5]))
    for step in range(8):
        for rank in range(2):
            batch = wide_batch(range(WIDE - 50 * step), step, rank)
            at = (batch.series[0].times, np.array([10 * step]))
            append_batches(store, Batch(batch.resource, [*batch.series, replace(steps, times=at[0], values=at[1])]))
        store.flush()
    assert count(store, "bundle") <= 40
    assert count(store, "chunk", "series NOT IN (SELECT id FROM series WHERE metric = 'tensormeter.step')") == (
        0 if full > 2000 else pytest.approx(1500, abs=900)
    )
    append_batches(store, wide_batch([3], 8))

    def check():
        assert values_of(store, "m000003", "m001090") == {
            ("m000003", "rank-0"): [float(step) for step in range(9)],
            ("m000003", "rank-1"): [float(step) for step in range(8)],
            ("m001090", "rank-0"): [0.0],
            ("m001090", "rank-1"): [0.0],
        }
        run = store.run(RUN)
        points = 2 * sum(WIDE - 50 * step + 1 for step in range(8)) + 1
        assert run.points == points == sum(metric.points for metric in store.metrics(RUN))
        summary = run.summary["m000700"]
        assert (summary.count, summary.min, summary.max, summary.last, summary.mean) == (16, 0.0, 7.0, 7.0, 3.5)
        assert run.summary["m001090"].last_step == 0
        table = store.table("p", ["summary.m000003.last", "summary.m000003.count", "points"])
        assert table.columns == {"summary.m000003.last": [8.0], "summary.m000003.count": [17], "points": [points]}
        (listed,) = store.runs(table.runs, ["m000700"])
        assert listed.summary["m000700"] == summary
        last = {
            metric.process: (metric.last, metric.last_step)
            for metric in store.metrics(RUN)
            if metric.metric == "m000700"
        }
        assert last == {"rank-0": (7.0, 70), "rank-1": (7.0, 70)}
        with pytest.raises(TooManyPointsError):
            store.read(RUN, Selection(["m000003"], limit=10))

    check()
    store.close()
    store = open_store(tmp_path)
    check()
    for step in (2, 5):  # sent again, without a batch ID
        append_batches(store, wide_batch(range(WIDE - 50 * step), step))
    store.flush()
    check()
    store.close()
    findings, counts = findings_of(tmp_path)
    assert findings == []
    assert counts["bundle"] > 0


def test_a_flush_of_many_runs_looks_for_each_series_in_its_run_only(tmp_path, monkeypatch):
    asked = []
    find = NumberIndex.points
    monkeypatch.setattr(NumberIndex, "points", lambda index, series: asked.append(series) or find(index, series))
    times = np.array([T0], np.uint64)
    with closing(open_store(tmp_path)) as store:
        for run in range(100):
            resource = OTHER | {"tensormeter.run.id": f"run-{run}", "service.instance.id": f"run-{run}"}
            steps = Gauge(STEP_METRIC, times, np.array([run]))
            append_batches(store, Batch(resource, [steps, Gauge("v", times, np.array([run / 7]))]))
        store.flush()
        assert len(asked) <= 3 * 200
        for run in range(0, 100, 33):
            (series,) = store.read(RunRef(f"run-{run}", "p"), Selection(["v"])).series
            assert series.points.values() == [run / 7]


def test_fields_include_metrics_that_only_memory_holds_however_many_names_arrived_later(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "_RUNS", 3)
    times = np.array([T0], np.uint64)
    with closing(open_store(tmp_path)) as store:
        for run in range(7):
            resource = OTHER | {"tensormeter.run.id": f"run-{run}", "service.instance.id": f"run-{run}"}
            append_batches(store, Batch(resource, [Gauge(f"early{run}", times, np.array([0.5]))]))
        elsewhere = OTHER | {"service.name": "elsewhere"}
        append_batches(store, Batch(elsewhere, [Gauge("unseen", times, np.array([0.5]))]))
        for first in range(0, 21_000, 7000):
            append_batches(store, wide_batch(range(first, first + 7000), 0))
        fields = store.field_names("p", "summary")
        assert len(fields) == 21_007
        assert all(f"summary.early{run}".encode() in fields for run in range(7))
        assert b"summary.unseen" not in fields


def test_steps_of_many_metrics_are_read_once_for_each_segment(tmp_path, monkeypatch):
    decoded = []
    decode = step_lookup.decode_segment
    monkeypatch.setattr(step_lookup, "decode_segment", lambda segment: decoded.append(segment) or decode(segment))
    rows = 40
    times = np.arange(T0, T0 + rows * 10**9, 10**9, dtype=np.uint64)
    with closing(open_store(tmp_path)) as store:
        gauges = [
            Gauge(f"m{name:06}", times[name % rows :][:1], np.array([name + 0.5])) for name in range(WIDE)
        ]  # the last value of each is in one of the rows
        batch = wide_batch((), 0)
        append_batches(store, replace(batch, series=[Gauge(STEP_METRIC, times, np.arange(rows) + 7), *gauges]))
        store.flush()
        for read in (store.metrics, store.summaries):
            decoded.clear()
            found = read(RUN, [f"m{name:06}" for name in range(WIDE)])
            steps = [entry.last_step for entry in (found.values() if isinstance(found, dict) else found)]
            assert steps == [name % rows + 7 for name in range(WIDE)]
            assert len(decoded) == 1


def test_names_of_metrics_in_bundles_are_listed(tmp_path):
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(WIDE), 0), wide_batch(range(WIDE), 0, 1))
    store.flush()
    assert len(store.names(RUN)) == len(store.field_names("p", "summary")) == WIDE
    assert len(store.metrics(RUN, ["m000003", "m000900"])) == 4
    assert store.summaries(RUN, ["m000900"])["m000900"].count == 2
    store.close()


def test_deleting_a_run_leaves_the_series_of_other_runs_in_shared_bundles(tmp_path):
    store = open_store(tmp_path)
    others = [replace(wide_batch(range(first, first + 40), 0, 1), resource=OTHER) for first in range(0, WIDE, 40)]
    for number, other in enumerate(others):  # the rows of both runs alternate
        append_batches(store, other, wide_batch(range(number * 40, number * 40 + 40), 0))
    store.flush()
    assert count(store, "bundle") > 0
    assert count(store, "chunk") == 0
    append_batches(store, *others)
    store.delete(RUN)
    store.flush()
    assert [run.run_id for run in store.runs(store.table("p", []).runs)] == ["other"]
    assert store.run(RunRef("other", "p")).points == len(others) * 40
    (series,) = store.read(RunRef("other", "p"), Selection(["m000041"])).series
    assert series.points.values() == [0.0]
    assert count(store, "series") == len(others) * 40
    store.close()
    assert findings_of(tmp_path)[0] == []
    store = open_store(tmp_path)
    store.delete(RunRef("other", "p"))
    store.flush()
    assert [count(store, table) for table in ("bundle", "bundle_group", "series", "run")] == [0, 0, 0, 0]
    store.close()


def test_old_bundles_are_removed_unless_their_run_is_kept(tmp_path):
    store = open_store(tmp_path, retention=Retention(max_age=1000.0))
    append_batches(store, wide_batch(range(WIDE), 0))
    now = (time.time_ns() - T0) // 10**9
    append_batches(store, wide_batch([0], now))
    store.flush()
    store.update(RUN, RunChanges(tags=("keep",)))
    store._expire()
    assert store.run(RUN).points == WIDE + 1
    store.update(RUN, RunChanges(tags=()))
    store._expire()
    assert store.run(RUN).points == 256  # the first group contains a new point
    assert count(store, "bundle") == 1
    store.close()
    assert findings_of(tmp_path)[0] == []


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE bundle SET words = zeroblob(length(words)) WHERE grp = 1", "the checksum does not match"),
        ("UPDATE bundle SET heads = zeroblob(length(heads)) WHERE grp = 1", "the checksum does not match"),
        ("DELETE FROM bundle WHERE grp = 1", "list of bundles does not match the checksum"),
        ("UPDATE bundle SET t_max = t_max + 1 WHERE grp = 1", "list of bundles does not match the checksum"),
        (
            "UPDATE bundle_group SET directory = directory + 1 WHERE id = 1",
            "list of bundles does not match the checksum",
        ),
        ("DELETE FROM bundle_group WHERE id = 1", "list of bundles does not match the checksum"),
    ],
)
def test_damage_to_a_bundle_is_an_error_for_its_series_and_for_no_other(tmp_path, statement, words):
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(WIDE), 0))
    store.close()
    change(tmp_path, statement)
    assert any(words in finding for finding in findings_of(tmp_path)[0])
    store = open_store(tmp_path)
    assert values_of(store, "m000100") == {("m000100", "rank-0"): [0.0]}
    with pytest.raises(DamagedError, match=words):
        values_of(store, "m000300")
    append_batches(store, wide_batch(range(WIDE), 1))
    store.flush()
    assert words in store.problem()
    assert values_of(store, "m000100") == {("m000100", "rank-0"): [0.0, 1.0]}
    with pytest.raises(DamagedError, match=words):
        values_of(store, "m000300")
    store.close()


def test_a_store_of_version_7_is_migrated_and_its_segments_stay(tmp_path):
    store = open_store(tmp_path)
    for first in range(0, 900, 300):
        append_batches(store, wide_batch(range(first, first + 300), 0))
    store.close()
    change(tmp_path, "DROP TABLE bundle", "DROP TABLE bundle_group", "PRAGMA user_version = 7")
    store = open_store(tmp_path)
    append_batches(store, wide_batch(range(WIDE), 1))
    append_batches(store, wide_batch(range(WIDE), 0))  # most of these are in segments
    store.flush()
    assert count(store, "chunk") == 900
    assert count(store, "bundle") > 0
    assert store.run(RUN).points == 2 * WIDE
    assert values_of(store, "m000007", "m001000") == {(name, "rank-0"): [0.0, 1.0] for name in ("m000007", "m001000")}
    store.close()
    assert findings_of(tmp_path)[0] == []
