"""Requests with many series in the SQLite store: what is kept in memory and in the file for each of them."""

import numpy as np
import pytest

from support.stores import append_batches
from tensormeter.otlp import number_blocks
from tensormeter.otlp.batch import Batch, Gauge, Histogram
from tensormeter.server.store import RunRef, Selection
from tensormeter.server.store.rules import limits
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.server.store.sqlite.tables.key_table import KeyTable

T0 = 1_750_000_000 * 10**9
RUN = RunRef("wide", "p")


def wide_batch(names, step, rank=0, points=1):
    """A request of one rank with some points of each metric."""
    times = np.arange(T0 + step * 10**9, T0 + step * 10**9 + points, dtype=np.uint64)
    resource = {"service.name": "p", "tensormeter.run.id": "wide", "service.instance.id": f"rank-{rank}"}
    return Batch(resource, [Gauge(f"m{name:06}", times, np.arange(points) + float(step)) for name in names])


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
    assert (receipt.rejected, receipt.message) == (60, "60 data points: run has more than 120 series")
    receipt = append_batches(store, wide_batch(range(150), 2))
    assert receipt.rejected == 30
    assert len(store.metrics(RUN)) == 120
    assert values_of(store, "m000119") == {("m000119", "rank-0"): [1.0, 2.0, 2.0]}
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
