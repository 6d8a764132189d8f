"""Samples of the SQLite store's chunks: when they are made, when they go, and what they say of their points."""

import math
import secrets
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.stores import append_batches
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge
from tensormeter.server.query.points import sampled as query_points_module
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.downsampling import sample_blocks
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import query_points
from tensormeter.server.store import PointRange, RunRef, Selection, TooManyPointsError
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, Blocks
from tensormeter.server.store.sqlite.integrity.inspection import Inspection
from tensormeter.server.store.sqlite.integrity.seals import checksum
from tensormeter.server.store.sqlite.maintenance import compact
from tensormeter.server.store.sqlite.points import rollups, segments
from tensormeter.server.store.sqlite.points.segments import SEGMENT_POINTS
from tensormeter.server.store.sqlite.schema import connect
from tensormeter.server.store.sqlite.store import SqliteStore

REF = RunRef("r")
T0 = 1_750_000_000 * 10**9


def append(store, times, values, steps=None):
    """Points of "v", with steps 1, 2, ... unless others are given."""
    times = np.asarray(times, np.uint64)
    steps = times.astype(np.int64) if steps is None else steps
    gauges = [Gauge(STEP_METRIC, times[: len(steps)], steps), Gauge("v", times, np.asarray(values, np.float64))]
    append_batches(store, Batch({"tensormeter.run.id": "r", "service.instance.id": "p"}, gauges))


def chart(store, x="step", **more):
    (series,) = query_points(store, [REF], RunQuery(("v",), Axis.parse(x), max_points=100, **more)).series
    return series


def blocks_of(store, window=PointRange(by_step=True), **more):  # noqa: B008
    """The blocks of "v", or None if it was given in points."""
    (rollup,) = store.read_rollups(REF, Selection(["v"], **more), window, 100)
    return rollup.blocks


N = 17 * SEGMENT_POINTS + 1000


def noise(n=N):
    return np.random.default_rng(0).standard_normal(n)


def test_a_chart_of_many_points_reads_few(open_store, query):
    store = open_store()
    values = noise()
    values[777_777] = 50.0
    append(store, np.arange(1, N + 1), values)
    store.flush()
    assert query("SELECT count(*) FROM sample") == [(2 * 17,)]
    blocks = blocks_of(store, limit=2 * SEGMENT_POINTS)
    assert blocks.counts.sum() == N
    assert blocks.counts.max() == 8 * BLOCK_POINTS
    for x in ("step", "time"):
        series = chart(store, x)
        assert (series.total, len(series.x) <= 100, series.y.max()) == (N, True, 50.0)
    half = chart(store, start=N / 2, stop=N / 2 + 300_000)
    assert (half.total, half.x[0], half.x[-1]) == (300_000, N / 2, N / 2 + 299_999)
    assert half.y.max() == 50.0
    few = chart(store, start=1000, stop=1050)  # all points of a narrow range
    assert few.x.tolist() == list(range(1000, 1050))
    assert few.y.tolist() == values[999:1049].tolist()


def test_a_point_that_is_late_or_far_away_is_counted(open_store, query):
    store = open_store()
    times = np.delete(np.arange(1, N + 1), 500_000)
    append(store, times[: 9 * SEGMENT_POINTS], np.zeros(9 * SEGMENT_POINTS))
    store.flush()
    append(store, [500_001], [7.0])
    assert (chart(store).total, chart(store).y.max()) == (9 * SEGMENT_POINTS + 1, 7.0)
    # Folded together with what comes after all others, it makes a chunk that is as long as the run.
    append(store, times[9 * SEGMENT_POINTS :], np.zeros(len(times) - 9 * SEGMENT_POINTS))
    store.flush()
    assert blocks_of(store, limit=4 * SEGMENT_POINTS).counts.sum() == N
    series = chart(store)
    assert (series.total, series.y.max(), series.x[series.y.argmax()]) == (N, 7.0, 500_001)


def test_points_answer_where_samples_cannot(open_store, query):
    store = open_store()
    steps = np.arange(1, N + 1)
    steps[N // 2 :] -= 1000  # it went back
    append(store, np.arange(1, N + 1), noise(), steps)
    store.flush()
    assert store.read_rollups(REF, Selection(["v"]), PointRange(by_step=True), 100) is None
    assert chart(store).total == N
    assert np.all(np.diff(chart(store).x) >= 0)
    assert blocks_of(store, PointRange()).counts.sum() == N
    assert chart(store, "time").total == N
    with pytest.raises(TooManyPointsError):
        store.read_rollups(REF, Selection(["v"], limit=1000), PointRange(start=100), 100)


def test_points_without_steps(open_store, query):
    store = open_store()
    steps = np.arange(1, N - SEGMENT_POINTS)
    append(store, np.arange(1, N + 1), noise(), steps)
    store.flush()
    assert chart(store).total == len(steps)
    assert blocks_of(store).counts.sum() == len(steps)
    assert chart(store, "time").total == N
    # Steps that come later count as well.
    append(store, np.arange(1, N + 1), np.zeros(N))
    assert chart(store).total == N


def test_samples_of_stores_that_have_none(open_store, query, eventually, monkeypatch):
    store = open_store()
    append(store, np.arange(1, N + 1), noise())
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_build_rollups", lambda _: False)  # as if it were killed now
        store.flush()
        expected = chart(store)
        store.close()
    assert query("SELECT count(*) FROM sample") == [(0,)]
    query("DROP TABLE sample", "PRAGMA user_version = 3")
    store = open_store()
    eventually(lambda: query("SELECT count(*) FROM sample") == [(2 * 17,)])
    assert blocks_of(store).counts.sum() == N
    assert chart(store).total == expected.total
    assert query("PRAGMA foreign_key_check") == []


def test_compacting_makes_samples_and_deleting_takes_them_away(open_store, query, tmp_path):
    store = open_store()
    for part in np.array_split(np.arange(1, 2 * SEGMENT_POINTS + 1), 5):
        append(store, part, np.zeros(len(part)))
        store.flush()
    store.close()
    compact(tmp_path / "store")
    assert query("SELECT count(*) FROM sample") == [(4,)]
    assert query(
        "SELECT count(*) FROM sample JOIN chunk ON chunk.id = chunk WHERE ascending AND n = step_max - step_min + 1"
    ) == [(4,)]
    store = open_store()
    store.delete(REF)
    store.flush()
    assert query("SELECT count(*) FROM sample") == [(0,)]


def test_a_damaged_chunk_keeps_others_from_nothing(open_store, query, monkeypatch):
    store = open_store()
    append(store, np.arange(1, N + 1), noise())
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_build_rollups", lambda _: False)
        store.flush()
    query("UPDATE chunk SET words = x'00' WHERE id = (SELECT min(id) FROM chunk)")
    store.close()
    store = open_store()
    append(store, [N + 1], [1.0])
    store.flush()
    assert query("SELECT count(*) FROM journal") == [(0,)]
    assert "damaged" in store.problem()
    assert query("SELECT count(*) FROM sample")[0][0] > 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(-9, 9).map(float), st.sampled_from([math.nan, math.inf, -math.inf])),
        min_size=1,
        max_size=300,
    ),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(4, 60),
)
def test_buckets_of_blocks_are_buckets_of_points(numbers, size, joined, max_points):
    values = np.array(numbers)
    n = len(values)
    blocks = Blocks.of(np.arange(n), values, np.arange(n) * 2, size)
    blocks = blocks.joined(np.arange(0, len(blocks), joined))
    assert Blocks.decode(blocks.encode()).encode().tobytes() == blocks.encode().tobytes()
    assert blocks.counts.sum() == n
    rows, columns = sample_blocks(blocks, max_points)
    shown = blocks.times[rows, columns]
    assert len(shown) <= max_points
    assert np.all(np.diff(shown) > 0)
    assert np.array_equal(blocks.values[rows, columns], values[shown], equal_nan=True)
    assert blocks.steps[rows, columns].tolist() == (2 * shown).tolist()
    buckets = max(max_points // (5 if np.isnan(values).any() else 4), 1)
    starts = np.cumsum(blocks.counts) - blocks.counts
    edges = [*starts[np.unique(starts * buckets // n, return_index=True)[1]], n]
    expected = set()
    for first, stop in pairwise(edges):
        bucket = values[first:stop]
        missing = np.isnan(bucket)
        expected |= {first, stop - 1}
        expected |= {first + int(missing.argmax())} if missing.any() and max_points > 4 else set()
        expected |= {first + int(np.where(missing, np.inf, bucket).argmin())}
        expected |= {first + int(np.where(missing, -np.inf, bucket).argmax())}
    assert set(shown.tolist()) == expected


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    store = SqliteStore(tmp_path_factory.mktemp("shared"), flush_points=1 << 60, flush_interval=3600)
    yield store
    store.close()


@st.composite
def long_histories(draw):
    """The points of up to three processes of two attempts, in pieces as they arrive; None is a fold."""
    pieces = []
    for process, (attempt, rank, began) in {"a": (1, 0, 0), "b": (1, 1, 7), "c": (2, 0, 1500)}.items():
        n = draw(st.integers(0, 300))
        times = began + 10 * np.arange(1, n + 1)
        steps = draw(st.sampled_from([0, 60])) * (attempt - 1) + np.arange(n)
        if draw(st.sampled_from([False, False, False, True])):  # it goes back, once
            at = draw(st.integers(0, n))
            steps[at:] -= draw(st.integers(0, at))
        stepped = np.ones(n, bool)
        stepped[[*draw(st.sets(st.integers(0, max(n - 1, 0)), max_size=n and draw(st.sampled_from([0, 0, 3]))))]] = (
            False
        )
        seed = draw(st.integers(0, 2**32 - 1))
        values = np.round(np.random.default_rng(seed).standard_normal(n), 1)
        for index in draw(st.sets(st.integers(0, max(n - 1, 0)), max_size=min(n, 3))):
            values[index] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
        cuts = sorted(draw(st.sets(st.integers(0, n), max_size=4)))
        parts = [part for part in np.split(np.arange(n), cuts) if len(part)]
        if len(parts) > 1 and draw(st.booleans()):  # one is late
            parts.append(parts.pop(draw(st.integers(0, len(parts) - 2))))
        for part in parts:
            pieces.append((process, attempt, rank, times[part], steps[part], stepped[part], values[part]))
            pieces += [None] * draw(st.sampled_from([0, 1, 1]))
    return pieces


@settings(max_examples=40, deadline=None)
@given(
    history=long_histories(),
    x=st.sampled_from(["step", "time", "relative"]),
    attempt=st.sampled_from([None, None, "all", 1, 2]),
    bounds=st.tuples(*[st.one_of(st.none(), st.floats(-0.1, 1.2))] * 2),
    max_points=st.sampled_from([4, 5, 11, 40]),
)
def test_samples_say_what_all_points_say(shared, history, x, attempt, bounds, max_points):
    run = f"samples-{secrets.token_hex(8)}"
    ref = RunRef(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_POINTS", 32)
        patch.setattr(rollups, "BLOCK_POINTS", 4)
        patch.setattr(rollups, "_JOINED", 2)
        patch.setattr(query_points_module, "WHOLE_POINTS", 0)
        for piece in history:
            if piece is None:
                shared.flush()
                continue
            process, number, rank, times, steps, stepped, values = piece
            resource = {"tensormeter.run.id": run, "service.instance.id": process}
            numbered = {"tensormeter.run.attempt": number, "tensormeter.rank": rank}
            gauges = [
                Gauge(STEP_METRIC, (T0 + times[stepped]).astype(np.uint64), steps[stepped]),
                Gauge("v", (T0 + times).astype(np.uint64), values),
            ]
            append_batches(shared, Batch(resource | numbered, gauges))
        if not history or all(piece is None for piece in history):
            return
        scale, origin = (300, 0) if x == "step" else (3000e-9, T0 / 1e9 if x == "time" else 0)
        start, stop = (None if bound is None else origin + bound * scale for bound in bounds)
        query = RunQuery(("v",), Axis.parse(x), start, stop, attempt=attempt, max_points=max_points)
        sampled = sorted(query_points(shared, [ref], query).series, key=lambda series: series.process)
        lines = sorted(RunReader(shared, ref, query).lines().lines, key=lambda line: line.series.process)
        assert [(series.process, series.attempt, series.total) for series in sampled] == [
            (line.series.process, line.attempt, len(line.x)) for line in lines
        ]
        for sampled_series, whole in zip(sampled, lines, strict=True):
            values = whole.series.points.floats()
            points = [*zip(whole.x.tolist(), values.view(np.int64).tolist(), strict=True)]
            shown = [*zip(sampled_series.x.tolist(), sampled_series.y.view(np.int64).tolist(), strict=True)]
            assert len(shown) <= max_points
            remaining = iter(points)
            assert all(point in remaining for point in shown)  # points that were logged, in their order
            assert (shown[0], shown[-1]) == (points[0], points[-1])
            if max_points > 4:
                assert np.isnan(sampled_series.y).any() == np.isnan(values).any()
            if not np.isnan(values).all():
                assert np.nanmin(sampled_series.y) == np.nanmin(values)
                assert np.nanmax(sampled_series.y) == np.nanmax(values)


def test_a_chart_of_blocks_does_not_read_the_segments(open_store, query):
    store = open_store()
    append(store, np.arange(1, N + 1), noise())
    store.flush()
    query("UPDATE chunk SET words = x'00', times = x'00', seal = 1 WHERE n = 65536")
    assert chart(store).total == N
    assert chart(store, "time").total == N
    with pytest.raises(DamagedError):
        chart(store, start=1000, stop=1050)


def test_samples_of_earlier_versions_with_checksums(open_store, query, tmp_path):
    store = open_store()
    append(store, np.arange(1, N + 1), noise())
    store.flush()
    expected = chart(store)
    rows = query(
        "SELECT chunk.id, series, seq, chunk.seal, step_min, step_max, ascending FROM sample JOIN chunk ON chunk.id = chunk"
    )
    query(*(f"UPDATE sample SET seal = {checksum(*row)} WHERE chunk = {row[0]}" for row in rows))
    assert chart(store).y.tolist() == expected.y.tolist()
    with closing(connect(tmp_path / "store" / "tensormeter.db", read_only=True)) as connection:
        assert [*Inspection(connection).all()] == []
    query("UPDATE sample SET step_max = step_max + 1")
    with pytest.raises(DamagedError):
        chart(store)
