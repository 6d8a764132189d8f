"""Runs whose processes have more points together than can be held: what is said of them is what all points say."""

import math
import secrets
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.stores import append_batches, append_events
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.server.auth.project_scope import ProjectStore
from tensormeter.server.query.points import sampled
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import query_points
from tensormeter.server.query.ranks import cache
from tensormeter.server.query.ranks import reader as reader_of_ranks
from tensormeter.server.query.ranks.cache import RankCache
from tensormeter.server.query.ranks.grid import Aggregates, RankGrid
from tensormeter.server.query.ranks.statistics import rank_statistics
from tensormeter.server.store import NotFoundError, RunRef, TooManyPointsError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.sqlite.points.segments import SEGMENT_POINTS
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000 * 10**9
SECOND = 10**9


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "clickhouse"])
def each_store(request):
    """A store, and then the other."""
    if request.param == "sqlite":
        yield request.getfixturevalue("store")
        return
    port = request.getfixturevalue("clickhouse")
    address = parse_address(f"clickhouse://127.0.0.1:{port}/crowds_{secrets.token_hex(8)}")
    made = ClickHouseStore(address, commit_interval=0)
    yield made
    made.close()


@pytest.fixture
def memory(monkeypatch):
    """One for which any number of points is too many."""
    monkeypatch.setattr(cache, "_WHOLE_POINTS", 0)
    return RankCache()


def append(store, run, rank, steps, values, *, start=0, attempt=1, project="p"):
    """Rows of one process, a second after each other."""
    times = (T0 + (start + np.arange(len(steps))) * SECOND).astype(np.uint64)
    resource = {
        "service.name": project,
        "tensormeter.run.id": run,
        "service.instance.id": f"rank {rank} of {attempt}",
        "tensormeter.rank": rank,
        "tensormeter.run.attempt": attempt,
    }
    gauges = [Gauge(STEP_METRIC, times, np.asarray(steps, np.int64)), Gauge("v", times, np.asarray(values, np.float64))]
    append_batches(store, Batch(resource, gauges))


def expected(store, ref, query):
    return rank_statistics(RunReader(store, ref, query).lines().lines, query.max_points)


def check(store, memory, run, **given):
    ref, query = RunRef(run, "p"), RunQuery(("v",), Axis.parse(given.pop("x", "step")), **given)
    statistics, known = memory.query(store, ref, query, project=None), expected(store, ref, query)
    assert statistics.processes == known.processes
    for name in ("x", "minimum", "median", "maximum"):
        np.testing.assert_array_equal(getattr(statistics, name), getattr(known, name), name)
    assert (statistics.lowest, statistics.highest) == (known.lowest, known.highest)
    return statistics


def test_they_are_those_of_all_points(store, memory):
    for rank in range(5):
        append(store, "r", rank, range(100), [math.nan if step % 10 == rank else step + rank for step in range(100)])
    append(store, "r", 5, range(50, 60), [math.nan] * 5 + [1000.0] * 5)  # one that came late and left early
    for x in ("step", "time", "relative"):
        statistics = check(store, memory, "r", x=x)
        assert (statistics.maximum.max(), statistics.processes, len(statistics.x)) == (1000.0, 6, 100)
    check(store, memory, "r", start=20, stop=55)
    assert check(store, memory, "r", start=200).processes == 0
    with pytest.raises(NotFoundError):
        memory.query(store, RunRef("other", "p"), RunQuery(("v",), Axis.parse("step")), project=None)


def test_they_grow(each_store, memory):
    store = each_store
    for rank in range(3):
        append(store, "g", rank, range(10), [step + rank for step in range(10)])
    check(store, memory, "g")
    ((entry,),) = [memory._entries.values()]
    reader = entry.reader
    for round_number in range(1, 4):
        steps = range(10 * round_number, 10 * round_number + 10)
        for rank in range(3):
            append(store, "g", rank, steps, [step - rank for step in steps], start=10 * round_number)
        check(store, memory, "g")
    assert entry.reader is reader  # nothing was read again
    append(store, "g", 3, range(40), [-5.0] * 40)
    assert check(store, memory, "g").processes == 4
    # Another attempt shadows what is known already.
    append(store, "g", 1, range(20, 30), [99.0] * 10, start=1000, attempt=2)
    statistics = check(store, memory, "g")
    assert statistics.highest[20:30] == ["rank 1 of 2"] * 10
    assert check(store, memory, "g", attempt=1).maximum.max() == 39.0


def test_a_run_that_is_made_again_has_nothing_of_the_former(store, memory):
    append(store, "again", 0, range(10), [7.0] * 10)
    check(store, memory, "again")
    store.delete(RunRef("again", "p"))
    later = (time.time_ns() - T0) // SECOND + 10
    resource = {"service.name": "p", "tensormeter.run.id": "again", "service.instance.id": "rank 0 of 1"}
    append_events(store, resource, Event("tensormeter.run.start", T0 + later * SECOND, {}))
    append(store, "again", 0, range(5), [1.0] * 5, start=later)
    assert check(store, memory, "again").maximum.tolist() == [1.0] * 5


def test_projects_do_not_share_what_is_remembered(store, memory):
    for project, value in (("one", 1.0), ("other", 2.0)):
        append(store, "same", 0, range(5), [value] * 5, project=project)
    query = RunQuery(("v",), Axis.parse("step"))
    for project, value in (("one", 1.0), ("other", 2.0)):
        seen = memory.query(ProjectStore(store, project), RunRef("same"), query, project=project)
        assert seen.maximum.tolist() == [value] * 5


def test_what_is_remembered_is_bounded(store, memory, monkeypatch):
    monkeypatch.setattr(cache, "_MAX_BYTES", 0)
    for run in ("a", "b", "c"):
        append(store, run, 0, range(5), [1.0] * 5)
        check(store, memory, run)
        assert len(memory._entries) == 1


def test_lines_are_those_of_all_points(store, monkeypatch):
    for rank in range(4):
        append(store, "lines", rank, range(100), [step + rank for step in range(100)])
    append(store, "lines", 2, range(60, 120), [-1.0] * 60, start=1000, attempt=2)
    runs, query = [RunRef("lines", "p")], RunQuery(("v",), Axis.parse("step"))
    several = ({}, {"max_points": 20}, {"attempt": 1}, {"attempt": "all"}, {"start": 30, "stop": 90})
    queries = [replace(query, **more) for more in several]
    known = [query_points(store, runs, variant) for variant in queries]
    monkeypatch.setattr(sampled, "WHOLE_POINTS", 0)
    monkeypatch.setattr(sampled, "MAX_READ_POINTS", 450)
    for varied_query, all_at_once in zip(queries, known, strict=True):
        lines = {series.process: series for series in query_points(store, runs, varied_query).series}
        assert lines.keys() == {series.process for series in all_at_once.series}
        for series in all_at_once.series:
            same = lines[series.process]
            assert (same.total, same.attempt, same.y.min()) == (series.total, series.attempt, series.y.min())
            # Pieces of a line are sampled before they are joined.
            if varied_query.max_points > 20 or series.process != "rank 2 of 2":
                np.testing.assert_array_equal(same.x, series.x)
                np.testing.assert_array_equal(same.y, series.y)
    with pytest.raises(TooManyPointsError, match="limit for one request"):  # a second crowd, one process alone
        query_points(store, [*runs, *runs], query)
    monkeypatch.setattr(sampled, "MAX_READ_POINTS", 50)
    with pytest.raises(TooManyPointsError, match="but the limit for one request is 50"):
        query_points(store, runs, query)


def test_long_series_are_taken_by_samples(store):
    """No value is lost, and no query reads every point."""
    n = 3 * SEGMENT_POINTS + 500
    chaos = np.random.default_rng(0)
    for rank in range(3):
        values = np.sin(np.arange(n) / 200_000) + 0.01 * chaos.standard_normal(n) + 0.1 * rank
        if rank == 1:
            values[123_456], values[-1] = -50.0, 60.0
        append(store, "long", rank, range(n), values)
    store.flush()
    memory, ref = RankCache(), RunRef("long", "p")
    for x in ("step", "time"):
        query = RunQuery(("v",), Axis.parse(x), max_points=100)
        statistics, known = memory.query(store, ref, query, project=None), expected(store, ref, query)
        assert (statistics.processes, statistics.minimum.min(), statistics.maximum.max()) == (3, -50.0, 60.0)
        assert statistics.lowest[int(statistics.minimum.argmin())] == statistics.highest[-1] == "rank 1 of 1"
        assert 50 <= len(statistics.x) <= 100
        assert set(statistics.highest[:-1]) == {"rank 2 of 1"}
        at = np.interp(statistics.x, known.x, known.median)
        assert np.abs(statistics.median - at)[:-1].max() < 0.03
    append(store, "long", 0, range(n, n + 10), [-99.0] * 10, start=n)
    statistics = memory.query(store, ref, query, project=None)
    assert (statistics.minimum[-1], statistics.lowest[-1]) == (-99.0, "rank 0 of 1")


places = st.lists(st.integers(-(2**40), 2**40) | st.integers(-50, 50), min_size=1, max_size=20)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2), places, st.randoms()), max_size=8), st.integers(1, 30), st.booleans())
def test_a_grid_knows_what_its_points_know(given, most, fractions):
    grid = RankGrid(3, most)
    rows: list[tuple[int, float, float]] = []
    for process, xs, random in given:
        x = np.sort(np.array(xs, np.float64) * (2.0**-7 if fractions else 1.0))
        values = np.array([random.choice([random.uniform(-9, 9), math.nan]) for _ in x])
        grid.add(process, Aggregates(x, values, values, values, np.ones(len(x))))
        rows += [(process, *row) for row in zip(x.tolist(), values.tolist(), strict=True)]
    used = np.flatnonzero(np.isfinite(grid.x))
    edges = grid.x[used]
    assert np.all(np.diff(edges) > 0)
    low, high, count = np.full((3, len(used)), np.inf), np.full((3, len(used)), -np.inf), np.zeros((3, len(used)))
    total = np.zeros_like(count)
    for process, at, value in rows:
        if math.isnan(value):
            continue
        column = int(np.searchsorted(edges, at, side="right")) - 1
        low[process, column] = min(low[process, column], value)
        high[process, column] = max(high[process, column], value)
        count[process, column] += 1
        total[process, column] += value
    np.testing.assert_array_equal(grid.low[:, used], low)
    np.testing.assert_array_equal(grid.high[:, used], high)
    np.testing.assert_array_equal(grid.count[:, used], count)
    np.testing.assert_allclose(grid.total[:, used], total, atol=1e-9)
    assert bool(rows) == bool(len(used))
    if len(used):
        assert {at for _, at, _ in rows} >= set(edges.tolist())


def test_statistics_are_computed_again_only_for_new_points(each_store):
    store, memory = each_store, RankCache()
    ref, query = RunRef("e", "p"), RunQuery(("v",), Axis.parse("step"))
    for rank in range(3):
        append(store, "e", rank, range(10), [step + rank for step in range(10)])
    first = memory.query(store, ref, query, project=None)
    assert memory.query(store, ref, query, project=None) is first
    append(store, "e", 1, [10], [99.0], start=10)
    second = memory.query(store, ref, query, project=None)
    assert (second.maximum.max(), len(second.x)) == (99.0, 11)
    assert memory.query(store, ref, query, project=None) is second
    append(store, "e", 2, range(10, 12), [100.0, 101.0], start=10, attempt=2)
    assert memory.query(store, ref, query, project=None).maximum.max() == 101.0
    store.delete(ref)
    with pytest.raises(NotFoundError):
        memory.query(store, ref, query, project=None)


def test_they_are_read_again_once_new_points_are_unknown(store, memory, monkeypatch):
    """The store forgets after some flushes which points are new."""
    monkeypatch.setattr(reader_of_ranks, "_NEW_POINTS", 50)
    for rank in range(3):
        append(store, "old", rank, range(100), [step + rank for step in range(100)])
    store.flush()
    check(store, memory, "old")
    for step in range(100, 104):
        append(store, "old", 1, [step], [1000.0 + step], start=step)
        store.flush()
    assert check(store, memory, "old").maximum[-1] == 1103.0


def test_only_series_with_the_attributes_are_read(each_store):
    store, ref = each_store, RunRef("a", "p")
    resource = {"service.name": "p", "tensormeter.run.id": "a", "service.instance.id": "0"}
    times = (T0 + np.arange(10) * SECOND).astype(np.uint64)
    parts = [7, 7.5, True, "7", "ü \n", "", None, [7], {"a": 7}]
    gauges = [
        Gauge(
            "v", times, np.full(10, float(index)), attributes={"part": part, "other": "7"} if part is not None else {}
        )
        for index, part in enumerate(parts)
    ]
    append_batches(store, Batch(resource, [Gauge(STEP_METRIC, times, np.arange(10)), *gauges]))

    def values(x="time", **attributes):
        query = RunQuery(("v",), Axis.parse(x), attributes=attributes)
        return [series.y.tolist() for series in query_points(store, [ref], query, 20).series]

    for index, part in enumerate(parts):
        if part is not None:
            assert values(part=part) == values("step", part=part) == [[float(index)] * 10]
    assert values(part=7.0) == [[0.0] * 10]
    assert values(part=1) == [[2.0] * 10]
    assert values(part="7", other="7") == [[3.0] * 10]
    assert values(part="\ud800") == values(part=7, other="8") == values(unknown=1) == []
    with pytest.raises(TooManyPointsError):
        values(other="7")
