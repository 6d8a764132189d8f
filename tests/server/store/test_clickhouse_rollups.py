"""Long series in ClickHouse, which are read as blocks."""

import itertools
import math
import secrets
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.stores import append_batches
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge
from tensormeter.server.query.points import sampled
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import query_points
from tensormeter.server.store import PointRange, RunRef, Selection, StoreUnavailableError, TooManyPointsError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address, rollup_encoding, stored_rollups
from tensormeter.server.store.clickhouse.computed_rollups import ComputedRollups
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, FIRST, HIGHEST, LAST, LOWEST, MISSING

T0 = 1_750_000_000 * 10**9
BLOCKS = 4
N = BLOCKS * BLOCK_POINTS + 1000
MANY = 5 * N
WAYS = ("stored", "computed")


@pytest.fixture(scope="module")
def store(clickhouse):
    store = ClickHouseStore(parse_address(f"clickhouse://127.0.0.1:{clickhouse}/rollups", {}), commit_interval=0)
    yield store
    store.close()


@contextmanager
def only(way):
    """Let only stored rollups, or only ClickHouse, answer."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "stored":
            patch.setattr(ComputedRollups, "read", lambda *_: pytest.fail("the stored rollups were not used"))
        else:
            patch.setattr(rollup_encoding, "_DENSE", 1 << 60)
            patch.setattr(stored_rollups, "_MOST_POINTS", 0)
        yield


@pytest.fixture(params=WAYS)
def way(request):
    with only(request.param):
        yield request.param


def append(store, values, times=None, steps=None, process="p", run=None, metric="v"):
    """Append points, one per second unless times are given, with the steps 0, 1, ... unless others are given."""
    run = run or f"r{secrets.token_hex(4)}"
    times = np.asarray(T0 + np.arange(len(values)) * 10**9 if times is None else times, np.uint64)
    steps = np.arange(len(values)) if steps is None else np.asarray(steps, np.int64)
    gauges = [Gauge(STEP_METRIC, times[: len(steps)], steps), Gauge(metric, times, np.asarray(values, np.float64))]
    append_batches(store, Batch({"tensormeter.run.id": run, "service.instance.id": process}, gauges))
    return RunRef(run)


def read(store, ref, window, **more):
    return store.read_rollups(ref, Selection(["v"], **more), window, BLOCKS)


def blocks_of(store, ref, window, **more):
    rollups = read(store, ref, window, **more)
    return None if rollups is None else [piece.blocks for piece in rollups]


def check(rollup, times, values, steps):
    """Check a series that is read as blocks, or as points if they are few."""
    if rollup.blocks is not None:
        check_blocks(rollup.blocks, times, values, steps)
        return
    np.testing.assert_array_equal(rollup.points.times, times)
    np.testing.assert_array_equal(rollup.points.floats(), values)
    np.testing.assert_array_equal(rollup.steps, 0 if steps is None else steps)


def check_blocks(blocks, times, values, steps):
    """Check blocks against the points that they replace, which are in order of time."""
    assert blocks.counts.sum() == len(times)
    assert (blocks.times[1:, FIRST] > blocks.times[:-1, LAST]).all()
    first = 0
    for count, picks, kept, stepped in zip(blocks.counts, blocks.times, blocks.values, blocks.steps, strict=True):
        of_block = slice(first, first + count)
        first += count
        inside = values[of_block]
        finite = inside[~np.isnan(inside)]
        assert (picks[FIRST], picks[LAST]) == (times[of_block][0], times[of_block][-1])
        if len(finite):
            assert (kept[LOWEST], kept[HIGHEST]) == (finite.min(), finite.max())
        else:
            assert np.isnan(kept[[LOWEST, HIGHEST]]).all()
        assert math.isnan(kept[MISSING]) == np.isnan(inside).any()
        index = np.searchsorted(times, picks)
        np.testing.assert_array_equal(times[index], picks)
        np.testing.assert_array_equal(values[index], kept)
        if steps is not None:
            np.testing.assert_array_equal(steps[index], stepped)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    odd=st.lists(st.sampled_from([math.nan, math.inf, -math.inf, 0.0]), max_size=8),
    all_nan=st.booleans(),
    pause=st.booleans(),
)
def test_blocks_stand_for_their_points(store, way, seed, odd, all_nan, pause):
    random = np.random.default_rng(seed)
    values = random.standard_normal(N).astype(np.float32).astype(np.float64)
    values[random.integers(0, N, len(odd))] = odd
    if all_nan:
        values[N // 3 : 2 * N // 3] = math.nan
    times = T0 + np.cumsum(random.integers(1, 10**9, N))
    if pause:
        times[N // 2 :] += 10**16  # months
    steps = np.cumsum(random.integers(0, 3, N))
    ref = append(store, values, times, steps)
    append(store, values[:100], times[:100], steps[:100], run=ref.run_id)  # again
    for window in (PointRange(), PointRange(by_step=True)):
        (blocks,) = blocks_of(store, ref, window)
        if way == "computed":
            assert BLOCKS - 1 <= len(blocks) <= BLOCKS
            assert blocks.counts.max() < 2 * N / BLOCKS
        check_blocks(blocks, times, values, steps if window.by_step else None)
    check_parts(store, ref, times, values, steps)


def check_parts(store, ref, times, values, steps):
    """Check the blocks of a part of the time, and of a part of the steps."""
    start, stop = int(times[50]) + 1, int(times[-50])
    (rollup,) = read(store, ref, PointRange(start=start, stop=stop))
    check(rollup, times[51:-50], values[51:-50], None)
    inside = (steps >= 20) & (steps < int(steps[-1]) - 20)
    window = PointRange(by_step=True, first_step=19.5, last_step=float(steps[-1] - 20))
    (rollup,) = read(store, ref, window)
    check(rollup, times[inside], values[inside], steps[inside])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), cuts=st.lists(st.integers(1, MANY - 1), max_size=8), late=st.integers(0, 5))
def test_commits_of_any_size_and_late_points(store, seed, cuts, late):
    random = np.random.default_rng(seed)
    values, times = random.standard_normal(MANY), T0 + np.cumsum(random.integers(1, 10**9, MANY))
    steps = np.cumsum(random.integers(0, 3, MANY))
    is_late = np.zeros(MANY, np.bool_)
    is_late[random.integers(0, MANY, late)] = True
    run = f"r{secrets.token_hex(4)}"
    for part in np.split(np.arange(MANY), sorted(cuts)):
        on_time = part[~is_late[part]]
        if len(on_time):
            ref = append(store, values[on_time], times[on_time], steps[on_time], run=run)
    if late:
        ref = append(store, values[is_late], times[is_late], steps[is_late], run=run)
    for window in (PointRange(), PointRange(by_step=True)):
        (rollup,) = read(store, ref, window)
        check(rollup, times, values, steps if window.by_step else None)
    check_parts(store, ref, times, values, steps)


def test_points_that_come_late_are_read_with_those_around_them(store):
    numbers = np.arange(MANY)
    times = T0 + numbers * 10**9
    is_late = numbers == MANY // 2
    run = f"r{secrets.token_hex(4)}"
    for part in (numbers[:1000], numbers[1000 : MANY - 1000], numbers[MANY - 1000 :]):
        on_time = part[~is_late[part]]
        append(store, on_time * 1.0, times[on_time], on_time, run=run)
    ref = append(store, numbers[is_late] * -1.0, times[is_late], numbers[is_late], run=run)
    (blocks,) = blocks_of(store, ref, PointRange(by_step=True))
    check_blocks(blocks, times, np.where(is_late, -numbers, numbers), numbers)
    assert blocks.values[:, LOWEST].min() == -MANY // 2


def test_rollups_of_a_commit_that_failed_before_its_points(store):
    numbers = np.arange(MANY)
    times = T0 + numbers * 10**9
    run = f"r{secrets.token_hex(4)}"
    insert = Connection.insert

    def refuse(connection, table, *rest):
        if table == "points":
            raise StoreUnavailableError("dead")
        insert(connection, table, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "insert", refuse)
        for failed in (numbers[:1000], numbers[500:2000], numbers[MANY - 400 :]):
            with pytest.raises(StoreUnavailableError):
                append(store, failed * 1.0, times[failed], failed, run=run)
    for part in np.split(numbers, [*range(1500, MANY - 1000, 1500), MANY - 200]):
        ref = append(store, part * 1.0, times[part], part, run=run)
    for window in (PointRange(), PointRange(by_step=True)):
        (blocks,) = blocks_of(store, ref, window)
        check_blocks(blocks, times, numbers * 1.0, numbers if window.by_step else None)
    ((rows,),) = store._connection.rows(f"SELECT count() FROM rollup WHERE run = {store._find(ref)}")
    assert rows == 2 * (3 + 11)  # for the values and the steps


def test_a_later_attempt_shadows_the_end_of_an_earlier_one(store, way):
    steps = np.arange(MANY)
    times = T0 + steps * 10**9
    run = f"r{secrets.token_hex(4)}"
    for part in np.split(steps, 10):
        ref = append(store, part * 1.0, times[part], part, run=run)
    began = T0 + 10**14
    for end in (MANY - 300, 300):
        (rollup,) = read(store, ref, PointRange(by_step=True, begins={("p", "v"): [(end, began)]}))
        check(rollup, times[:end], steps[:end] * 1.0, steps[:end])
    assert read(store, ref, PointRange(begins={("p", "v"): [(0, began)]})) == []
    # The earlier attempt logged after the later one had begun.
    window = PointRange(by_step=True, begins={("p", "v"): [(MANY - 10, T0 + (MANY - 5) * 10**9)]})
    if way == "computed":
        assert read(store, ref, window) is None
    else:
        kept = [*range(MANY - 10), *range(MANY - 5, MANY)]
        (rollup,) = read(store, ref, window)
        check(rollup, times[kept], steps[kept] * 1.0, steps[kept])


@pytest.mark.parametrize("case", ["steps go back", "points without steps", "two step series", "fractional steps"])
def test_points_answer_where_blocks_cannot(store, case):
    steps = np.arange(N)
    if case == "steps go back":
        steps[N // 2 :] -= 100
    ref = append(store, np.ones(N), steps=steps[:-10] if case == "points without steps" else steps)
    if case == "two step series":
        again = Gauge(STEP_METRIC, np.array([T0], np.uint64), np.array([5]), attributes={"other": True})
        append_batches(store, Batch({"tensormeter.run.id": ref.run_id, "service.instance.id": "p"}, [again]))
    if case == "fractional steps":
        half = Gauge(STEP_METRIC, np.array([T0 + N * 10**9], np.uint64), np.array([N + 0.5]))
        value = Gauge("v", np.array([T0 + N * 10**9], np.uint64), np.array([1.0]))
        append_batches(store, Batch({"tensormeter.run.id": ref.run_id, "service.instance.id": "p"}, [half, value]))
    with only("computed"):
        assert read(store, ref, PointRange(by_step=True)) is None
    (rollup,) = read(store, ref, PointRange())
    assert rollup.blocks.counts.sum() == N + (case == "fractional steps")
    rollups = read(store, ref, PointRange(by_step=True))
    if case in ("two step series", "fractional steps"):
        assert rollups is None
    else:  # points whose steps are not in order of time
        (rollup,) = rollups
        index = np.arange(N - 10 if case == "points without steps" else N)
        check(rollup, T0 + index * 10**9, np.ones(len(index)), steps[index])


def test_blocks_of_a_series_that_grows_while_it_is_read(store, monkeypatch):
    monkeypatch.setattr(stored_rollups, "_MOST_POINTS", 0)
    monkeypatch.setattr(rollup_encoding, "_DENSE", 1 << 60)
    ref = append(store, np.arange(N) * 1.0)
    read = ComputedRollups._grouped
    lengths = itertools.count(N, 10)

    def grow_and_read(*arguments):
        steps = np.arange(first := next(lengths), first + 10)
        append(store, steps * 1.0, T0 + steps * 10**9, steps, run=ref.run_id)
        return read(*arguments)

    monkeypatch.setattr(ComputedRollups, "_grouped", grow_and_read)
    (blocks,) = blocks_of(store, ref, PointRange(by_step=True))
    steps = np.arange(N)
    check_blocks(blocks, T0 + steps * 10**9, steps * 1.0, steps)
    assert next(lengths) > N + 10


def test_short_series_are_points(store):
    assert blocks_of(store, append(store, np.ones(100)), PointRange()) is None
    # Only the steps at the times of a short series are read.
    ref = append(store, np.arange(N) * 1.0)
    times = np.uint64(T0) + np.arange(0, N, 100, np.uint64) * np.uint64(10**9)
    evaluation = Gauge("eval", times, np.arange(len(times)) * 1.0)
    append_batches(store, Batch({"tensormeter.run.id": ref.run_id, "service.instance.id": "p"}, [evaluation]))
    window = PointRange(by_step=True, first_step=1000)
    (short,) = store.read_rollups(ref, Selection(["eval"], limit=100), window, BLOCKS)
    assert short.steps.tolist() == list(range(1000, N, 100))
    with pytest.raises(TooManyPointsError):
        store.read_rollups(ref, Selection(["eval"], limit=10), window, BLOCKS)


def test_a_chart_of_more_points_than_a_request_may_read(store, way, monkeypatch):
    monkeypatch.setattr(sampled, "WHOLE_POINTS", 1000)
    values = np.sin(np.arange(40 * BLOCK_POINTS) / 1000)
    values[12_345] = 50.0
    ref = append(store, values)
    for x in ("step", "time"):
        query = RunQuery(("v",), Axis.parse(x), max_points=40)
        (series,) = query_points(store, [ref], query, limit=2000).series
        assert (series.total, series.y.max()) == (len(values), 50.0)
        assert series.x[series.y.argmax()] == 12_345 + (0 if x == "step" else T0 / 1e9)
        assert 20 <= len(series.x) <= 40
        assert (np.diff(series.x) > 0).all()
