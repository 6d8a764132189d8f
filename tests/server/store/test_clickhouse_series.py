"""Runs with many series in the ClickHouse store: what each commit writes and reads for them."""

import numpy as np
import pytest

from support.stores import append_batches, append_values
from tensormeter.errors import EncodingError
from tensormeter.otlp import number_blocks
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge, Histogram
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.number_blocks import decode_blocks
from tensormeter.server.store import RunRef, Selection, StoreUnavailableError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address, series_index
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.rules import limits

T0 = 1_750_000_000 * 10**9


@pytest.fixture
def open_store(clickhouse, tmp_path):
    opened = []
    address = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/series_{abs(hash(str(tmp_path)))}", {})

    def open_store():
        opened.append(ClickHouseStore(address, commit_interval=0))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def inserted(monkeypatch):
    """The tables of all inserts, in order."""
    tables, insert = [], Connection.insert

    def recording_insert(connection, table, columns, rows):
        tables.append(table)
        insert(connection, table, columns, rows)

    monkeypatch.setattr(Connection, "insert", recording_insert)
    return tables


def wide_batch(names, step, rank=0, points=1, unit=""):
    """A request of one rank with some points of each metric, and their steps."""
    times = np.arange(T0 + step * 10**9, T0 + step * 10**9 + points, dtype=np.uint64)
    resource = {"tensormeter.run.id": "wide", "service.instance.id": f"rank-{rank}"}
    gauges = [Gauge(f"m{name:06}", times, np.arange(points) + float(step), unit=unit) for name in names]
    return Batch(resource, [Gauge(STEP_METRIC, times, np.full(points, step)), *gauges])


def values_of(store, *metrics, **selection):
    reading = store.read(RunRef("wide"), Selection(metrics, **selection))
    return {(series.metric, series.process): series.points.values() for series in reading.series}


@pytest.mark.parametrize("compiled", [True, False])
def test_a_commit_of_many_metrics_is_found_by_readers_with_a_cursor(open_store, monkeypatch, compiled):
    """The arrival log names no metrics of such a commit, but contains the keys of their series."""
    if not compiled:
        monkeypatch.setattr(number_blocks, "_extension", None)
    store, other = open_store(), open_store()
    for rank in range(2):
        append_batches(store, wide_batch(range(1500), 0, rank))
    cursor = other.changes(None).cursor
    append_batches(
        store, wide_batch(range(600), 1), wide_batch([7, 8, 7], 1, rank=1), wide_batch(range(600), 1, rank=2)
    )
    (change,) = other.changes(cursor).changes
    assert (change.metrics, change.many) == ([*(f"m{name:06}" for name in range(600)), STEP_METRIC], False)
    append_batches(store, wide_batch(range(600, 1200), 2))
    (change,) = other.changes(cursor).changes
    assert (change.metrics, change.many) == ([], True)
    assert values_of(other, "m000007", after=cursor) == {("m000007", f"rank-{rank}"): [1.0] for rank in range(3)}
    assert values_of(other, "m001300", after=cursor) == {}
    assert values_of(other, "m000007", "m001300") == {
        ("m000007", "rank-0"): [0.0, 1.0],
        ("m000007", "rank-1"): [0.0, 1.0],
        ("m000007", "rank-2"): [1.0],
        ("m001300", "rank-0"): [0.0],
        ("m001300", "rank-1"): [0.0],
    }
    metrics = other.metrics(RunRef("wide"))
    assert len(metrics) == 2 * 1501 + 601
    assert {(metric.last, metric.last_step) for metric in metrics if metric.metric == "m000007"} == {(1.0, 1)}
    summary = other.run(RunRef("wide")).summary["m001300"]
    assert (summary.count, summary.min, summary.max, summary.last_step) == (2, 0.0, 0.0, 0)


def test_a_series_is_described_once_by_each_server_and_again_after_a_failure(open_store, inserted, monkeypatch):
    store = open_store()

    def tables_of(batch, sender=store):
        del inserted[:]
        append_batches(sender, batch)
        return inserted

    assert "catalog" in tables_of(wide_batch(range(5), 0))
    assert "catalog" not in tables_of(wide_batch(range(5), 1))
    assert "catalog" in tables_of(wide_batch(range(6), 2))
    assert "catalog" in tables_of(wide_batch(range(6), 3, unit="s"))
    assert "catalog" not in tables_of(wide_batch(range(6), 4, unit="s"))
    assert {metric.unit for metric in store.metrics(RunRef("wide")) if metric.metric != STEP_METRIC} == {"s"}
    other = open_store()
    assert "catalog" in tables_of(wide_batch(range(6), 5, unit="s"), other)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "insert", lambda *_: (_ for _ in ()).throw(StoreUnavailableError("dead")))
        with pytest.raises(StoreUnavailableError):
            append_batches(store, wide_batch(range(6), 6, unit="s"))
    assert "catalog" in tables_of(wide_batch(range(6), 6, unit="s"))
    assert values_of(store, "m000003") == {("m000003", "rank-0"): [float(step) for step in range(7)]}


def test_a_point_that_another_server_stored_meanwhile_does_not_change_a_summary(open_store):
    first, second = open_store(), open_store()
    append_values(first, [T0], [1.0])
    append_values(second, [T0 + 2], [2.0])
    append_values(first, [T0 + 1, T0 + 2], [0.0, 9.0])  # the second point was sent again, with another value
    summary = first.run(RunRef("r")).summary["v"]
    assert (summary.count, summary.min, summary.max, summary.last) == (3, 0.0, 2.0, 2.0)


def test_runs_that_the_index_has_evicted_are_read_again(open_store, monkeypatch):
    monkeypatch.setattr(series_index, "_MOST", 100)
    store = open_store()
    for step in range(2):
        for run in range(6):
            append_values(store, [T0 + step], [float(step)], run=f"run-{run}")
    for run in range(6):
        append_values(store, [T0, T0 + 1, T0 + 2], [9.0, 9.0, 0.5], run=f"run-{run}")
        summary = store.run(RunRef(f"run-{run}")).summary["v"]
        assert (summary.count, summary.max, summary.last) == (3, 1.0, 0.5)
    assert len(store._group_commit._cache.index._runs) < 6


def test_series_beyond_the_limit_are_refused_and_the_others_stored(open_store, monkeypatch):
    monkeypatch.setattr(limits, "MAX_SERIES_PER_RUN", 121)
    store, other = open_store(), open_store()
    append_batches(store, wide_batch(range(100), 0))
    receipt = append_batches(other, wide_batch(range(150), 1, points=2))
    assert (receipt.rejected, receipt.message) == (60, f"60 data points: {limits.too_many_series()}")
    histogram = Histogram(
        "h", *(np.array([T0], np.uint64),) * 2, *(np.ones(1),) * 4, np.array([1.0]), np.array([[1, 0]], np.uint64)
    )
    batch = wide_batch(range(150), 2)
    receipt = append_batches(store, Batch(batch.resource, [*batch.series, histogram]))
    assert receipt.rejected == 31
    assert len(store.metrics(RunRef("wide"))) == 121
    assert values_of(store, "m000119") == {("m000119", "rank-0"): [1.0, 2.0, 2.0]}


def test_names_beyond_the_limit_are_refused_and_known_names_go_on(open_store, monkeypatch):
    """Limits count names, on all servers together, so that further ranks may send the same names."""
    monkeypatch.setattr(limits, "MAX_NAMES_PER_RUN", 120)
    store, other = open_store(), open_store()
    append_batches(store, wide_batch(range(100), 0), wide_batch(range(100), 0, 1))
    receipt = append_batches(other, wide_batch(range(150), 1, points=2), wide_batch(range(50, 110), 1, 1))
    assert (receipt.rejected, receipt.message) == (60, f"60 data points: {limits.too_many_names()}")
    assert append_batches(store, wide_batch(range(150), 2, 2)).rejected == 30
    times = np.array([T0 + 9 * 10**9], np.uint64)
    resource = wide_batch([], 0).resource
    assert append_batches(store, Batch(resource, [Gauge("tensormeter.dropped", times, np.ones(1))])).rejected == 0
    histogram = Histogram(
        "h", times, times, *(np.ones(1, np.uint64),) * 4, np.array([1.0]), np.array([[1, 0]], np.uint64)
    )
    assert append_batches(store, Batch(resource, [histogram])).rejected == 1
    another = {**resource, "tensormeter.run.id": "another"}
    assert append_batches(store, Batch(another, wide_batch(range(110, 220), 0).series)).rejected == 0
    for server in (store, other, open_store()):
        receipt = append_batches(server, wide_batch(range(150), 3), wide_batch(range(150), 3, 3))
        assert receipt.rejected == 60
        assert len(server.names(RunRef("wide"))) == 122
    assert values_of(store, "m000119")["m000119", "rank-0"] == [1.0, 2.0, 3.0]


def test_numbers_and_distributions_of_one_commit_share_the_limit_of_names(open_store, monkeypatch):
    monkeypatch.setattr(limits, "MAX_NAMES_PER_RUN", 11)
    store = open_store()
    batch = wide_batch(range(10), 0)
    times = np.array([T0 + 1], np.uint64)
    histograms = [
        Histogram(name, times, times, *(np.ones(1, np.uint64),) * 4, np.array([1.0]), np.array([[1, 0]], np.uint64))
        for name in ("h", "m000001", "i", "j")
    ]
    receipt = append_batches(store, Batch(batch.resource, [*batch.series, *histograms]))
    assert (receipt.rejected, receipt.message) == (2, f"2 data points: {limits.too_many_names()}")
    assert len(store.names(RunRef("wide"))) == 12


def test_distributions_and_numbers_of_one_request_are_stored_together(open_store):
    store = open_store()
    times = np.array([T0 + 2, T0 + 1, T0 + 1, T0 + 3], np.uint64)
    ones = np.ones(4)
    counts = np.array([[1, 0]] * 4, np.uint64)
    histogram = Histogram("h", times, times, counts[:, 0], ones, ones, ones, np.array([1.0]), counts)
    gauge = Gauge("v", times, np.array([2.0, 1.0, 7.0, np.nan]))
    append_batches(store, Batch({"tensormeter.run.id": "wide", "service.instance.id": "p"}, [gauge, histogram]))
    assert values_of(store, "v")["v", "p"][:2] == [1.0, 2.0]
    (series,) = store.read(RunRef("wide"), Selection(["h"], numeric=False)).series
    assert series.points.times.tolist() == [T0 + 1, T0 + 2, T0 + 3]
    summary = store.run(RunRef("wide")).summary["v"]
    assert (summary.count, summary.min, summary.max, summary.last_time) == (3, 1.0, 2.0, T0 + 3)


def test_a_name_that_is_not_text_fails_only_its_own_request(open_store):
    store = open_store()
    cursor = store.changes(None).cursor
    payload = encode_metrics([wide_batch(range(5), 0)]).replace(b"m000003", b"m\xff\xff\xff\xff03")
    with pytest.raises(EncodingError):
        store.append_metrics(decode_blocks(payload), payload=payload)
    append_batches(store, wide_batch(range(3), 1))
    assert values_of(store, "m000001", "m000004", after=cursor) == {("m000001", "rank-0"): [1.0]}
    assert not store.read(RunRef("wide"), Selection(["m000001"], after=cursor)).complete


def test_points_of_any_number_of_metrics_are_read_in_one_request(open_store):
    """ClickHouse limits the size of a parameter, so the names are divided among several."""
    store = open_store()
    append_batches(store, wide_batch(range(20_000), 0))
    names = [*(f"{number}\t'\\\\" * 100 for number in range(300)), *(f"m{name:06}" for name in range(20_000))]
    assert len(values_of(store, *names)) == 20_000
    assert len(store.run(RunRef("wide"), names).summary) == 20_000
