"""The history that a full spool keeps: even over the run for any width, and every point delivered or counted as lost."""

import gzip
import random
from collections import Counter

import numpy as np
import pytest

from support.spools import take_requests
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.request_editing import thinned
from tensormeter.agent.spool.spool import Spool
from tensormeter.conventions.semconv import STEP_METRIC
from tensormeter.otlp.batch import Batch, Gauge, Sum, Temporality
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics


class Recording:
    """A process that logs rows into a spool.

    Attributes:
        logged: Steps of each series.
    """

    def __init__(self, spool, process="p", destinations=("a",)):
        self._spool = spool
        self._process = process
        self._destinations = destinations
        self.logged = {}

    def put(self, rows):
        """Store one request with some rows, each given as (step, names)."""
        series, items = {}, len(rows)
        for step, names in rows:
            items += len(names)
            for name in (STEP_METRIC, *names):
                series.setdefault(name, []).append(step)
            for name in names:
                self.logged.setdefault(name, []).append(step)
        noise = random.Random(rows[0][0])
        gauges = [
            Gauge(
                name,
                np.array([time(step) for step in steps], np.uint64),
                np.array(steps, np.int64) if name == STEP_METRIC else np.array([value(step, noise) for step in steps]),
            )
            for name, steps in series.items()
        ]
        body = gzip.compress(encode_metrics([Batch({"service.instance.id": self._process}, gauges)]), 1)
        encoded = [Encoded("metrics", body, items)]
        self._spool.put(encoded, self._destinations, self._process, {}, started=True, ended=False)

    def points(self):
        return sum(map(len, self.logged.values()))


def time(step):
    return 1_000_000 + 64 * step


def value(step, noise):
    """Return a value that does not compress well and whose integer part is the step."""
    return step + noise.random()


def delivered(spool, destination="a"):
    """Deliver the waiting requests. Return the steps of each series by process, and check each point's step."""
    found = {}
    for request in take_requests(spool, destination):
        items = 0
        for batch in decode_metrics(gzip.decompress(request.body)):
            steps = {at: step for gauge in batch.gauges if gauge.name == STEP_METRIC for at, step in points(gauge)}
            items += len(steps)
            for gauge in batch.gauges:
                if gauge.name != STEP_METRIC:
                    of_series = found.setdefault(batch.resource["service.instance.id"], {}).setdefault(gauge.name, [])
                    assert all(steps[at] == int(number) for at, number in points(gauge))
                    of_series += [int(number) for number in gauge.values.tolist()]
                    items += len(gauge.values)
        assert request.items == items
    return found


def points(gauge):
    return zip(gauge.times.tolist(), gauge.values.tolist(), strict=True)


def lost(spool):
    assert spool.losses().keys() <= {"spool_full_scalars"}
    return spool.losses().get("spool_full_scalars", 0)


def tenths(steps, rows):
    return np.histogram(steps, 10, (0, rows))[0]


@pytest.fixture
def open_spool(tmp_path):
    spools = []

    def open_spool(max_bytes):
        spools.append(Spool(tmp_path / "spool.sqlite", durability="none", max_bytes=max_bytes))
        return spools[-1]

    yield open_spool
    for spool in spools:
        spool.close()


@pytest.mark.parametrize(
    ("width", "rows_of_request", "rows"),
    [(1, 100, 30_000), (20, 100, 4_000), (20, 1, 2_000), (300, 5, 600), (300, 1, 400), (1_500, 3, 150)],
)
@pytest.mark.parametrize("share", [1, 0.9], ids=["whole rows", "nine tenths of each row"])
def test_each_tenth_of_the_run_keeps_as_many_points(open_spool, width, rows_of_request, rows, share):
    max_bytes = 400_000
    spool = open_spool(max_bytes)
    recording = Recording(spool)
    names, choice = [f"m{k}" for k in range(width)], random.Random(1)
    fullest = 0
    for start in range(0, rows, rows_of_request):
        steps = range(start, min(rows, start + rows_of_request))
        some = [
            (step, names if share == 1 else [n for n in names if choice.random() < share] or names) for step in steps
        ]
        recording.put(some)
        assert spool.used_bytes() <= max_bytes
        fullest = max(fullest, spool.used_bytes())
        assert fullest < 0.9 * max_bytes or spool.used_bytes() > 0.7 * max_bytes, "it stays well filled"
    found = delivered(spool)["p"]
    kept = sum(map(len, found.values()))
    assert 0 < lost(spool) == recording.points() - kept
    histogram = tenths([step for steps in found.values() for step in steps], rows)
    assert histogram[:7].max() <= 2.2 * histogram[:7].min(), histogram
    assert histogram[7:].min() >= 0.7 * histogram[:7].min(), histogram
    assert histogram[7:].max() <= 5 * histogram[:7].min(), "the newest part has not been thinned as often"
    for name, steps in found.items():
        assert steps == sorted(set(steps)), "in order, and each point once"
        assert {*steps} <= {*recording.logged[name]}
        assert steps[0] == recording.logged[name][0]
        assert steps[-1] == recording.logged[name][-1]


def test_a_series_that_few_rows_contain_is_thinned_as_evenly(open_spool):
    """Every tenth row has another value. Dropping every second row would drop all of these values."""
    spool = open_spool(300_000)
    recording = Recording(spool)
    names = [f"m{k}" for k in range(30)]
    for step in range(0, 4_000, 2):
        recording.put([(step, names), (step + 1, [*names, "rare"] if step % 10 == 8 else names)])
    found = delivered(spool)["p"]
    rare = tenths(found["rare"], 4_000)
    assert rare.min() >= 10
    assert rare[:-1].max() <= 2.2 * rare[:-1].min()
    assert lost(spool) == recording.points() - sum(map(len, found.values()))


def test_last_values_of_series_that_ended_long_ago_are_kept(open_spool):
    spool = open_spool(300_000)
    recording = Recording(spool)
    names = [f"m{k}" for k in range(100)]
    for step in range(600):
        recording.put([(step, [*names, f"early{step}"] if step < 40 else names)])
    found = delivered(spool)["p"]
    assert {name: steps[-1] for name, steps in found.items()} == {
        name: steps[-1] for name, steps in recording.logged.items()
    }
    assert lost(spool) == recording.points() - sum(map(len, found.values()))


def test_processes_that_share_a_spool_are_thinned_alike(open_spool):
    spool = open_spool(400_000)
    recordings = {process: Recording(spool, process) for process in ("r0", "r1", "r2")}
    names = [f"m{k}" for k in range(60)]
    for step in range(600):
        for recording in recordings.values():
            recording.put([(step, names)])
    found = delivered(spool)
    kept = 0
    for process in recordings:
        histogram = tenths([step for steps in found[process].values() for step in steps], 600)
        kept += histogram.sum()
        assert histogram[:-1].max() <= 2.2 * histogram[:-1].min(), histogram
        assert found[process]["m0"][0] == 0
        assert found[process]["m0"][-1] == 599
    assert lost(spool) == 3 * 600 * 60 - kept


def test_points_of_the_same_rows_are_kept_and_steps_only_with_them():
    """Series that begin in different rows soon keep points of the same rows. A step that remains alone is dropped."""
    rows = range(8)
    at = np.array([time(step) for step in rows], np.uint64)
    series = [
        Gauge(STEP_METRIC, at, np.array(rows)),
        Gauge("x", at[:7], np.arange(7.0)),
        Gauge("y", at[1:7], np.arange(1.0, 7.0)),
    ]
    body = gzip.compress(encode_metrics([Batch({}, series)]))
    later = {("gauge x", b""): time(8), ("gauge y", b""): time(8), (f"gauge {STEP_METRIC}", b""): time(8)}
    result = thinned([body], later)
    (batch,) = decode_metrics(gzip.decompress(result.body))
    found = {gauge.name: gauge.values.tolist() for gauge in batch.gauges}
    assert found == {"x": [0, 2, 4, 6], "y": [1, 4, 6], STEP_METRIC: [0, 1, 2, 4, 6]}
    assert (result.items, result.lost) == (4 + 3 + 5, 3 + 3)


def test_the_steps_of_deltas_are_kept():
    at = np.array([time(step) for step in range(4)], np.uint64)
    total = Sum("n", at[1:2], np.array([1]), at[1:2] - np.uint64(64), monotonic=True, temporality=Temporality.DELTA)
    series = [Gauge(STEP_METRIC, at, np.arange(4)), Gauge("x", at, np.arange(4.0)), total]
    result = thinned([gzip.compress(encode_metrics([Batch({}, series)]))])
    (batch,) = decode_metrics(gzip.decompress(result.body))
    assert [gauge.values.tolist() for gauge in batch.gauges if gauge.name == STEP_METRIC] == [[0, 1, 2, 3]]
    assert result.lost == 1, "the last point is kept"


def test_many_short_processes_keep_their_last_values(open_spool):
    """Their requests have no neighbours of the same process."""
    spool = open_spool(300_000)
    names = [f"m{k}" for k in range(100)]
    recordings = [Recording(spool, f"worker{number}") for number in range(150)]
    for number, recording in enumerate(recordings):
        recording.put([(step, names) for step in range(number, number + 10)])
    found = delivered(spool)
    kept = sum(len(steps) for process in found.values() for steps in process.values())
    assert {process: found[process]["m0"][-1] for process in found} == {f"worker{n}": n + 9 for n in range(150)}
    assert lost(spool) == 150 * 10 * 100 - kept


def test_deltas_are_never_dropped(open_spool):
    spool = open_spool(400_000)
    put = 0
    noise = random.Random(1)
    for step in range(300):
        at = np.array([time(step)], np.uint64)
        gauges = [Gauge(f"m{k}", at, np.array([noise.random()])) for k in range(200)]
        total = Sum("count", at, np.array([1]), at - np.uint64(64), monotonic=True, temporality=Temporality.DELTA)
        body = gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, [*gauges, total])]), 1)
        spool.put([Encoded("metrics", body, 201)], ["a"], "p", {}, started=True, ended=False)
        put += 201
    names = Counter()
    for request in take_requests(spool):
        for batch in decode_metrics(gzip.decompress(request.body)):
            names.update({series.name: len(series.times) for series in batch.series})
    assert names["count"] == 300
    assert lost(spool) == put - names.total() > 0


def test_requests_of_which_every_point_is_kept_do_not_grow_without_limit(open_spool, monkeypatch):
    for module in ("thinning", "eviction"):
        monkeypatch.setattr(f"tensormeter.agent.spool.{module}.MOST_JOINED", 20_000)
    spool = open_spool(100_000)
    for step in range(400):
        at = np.array([time(step)], np.uint64)
        series = [
            Sum(f"c{k}", at, np.array([k]), at - np.uint64(64), monotonic=True, temporality=Temporality.DELTA)
            for k in range(30)
        ]
        body = gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, series)]), 1)
        spool.put([Encoded("metrics", body, 30)], ["a"], "p", {}, started=True, ended=False)
    requests = list(take_requests(spool))
    assert sum(request.items for request in requests) == 400 * 30
    assert max(len(request.body) for request in requests) <= 20_000
    assert not spool.losses()


def test_a_destination_that_is_behind_does_not_disturb_the_order_of_another(open_spool):
    """Requests that only one of two destinations still needs are thinned apart from those that both need."""
    spool = open_spool(300_000)
    recording = Recording(spool, destinations=("a", "b"))
    names = [f"m{k}" for k in range(60)]
    taken = []
    for step in range(600):
        recording.put([(step, names)])
        if step % 50 == 0:
            taken += delivered(spool, "b")["p"]["m0"]
    taken += delivered(spool, "b")["p"]["m0"]
    assert taken == sorted({*taken})
    left = delivered(spool, "a")["p"]["m0"]
    histogram = tenths(left, 600)
    assert left == sorted({*left})
    assert histogram[:-1].max() <= 3 * histogram[:-1].min(), histogram
    assert (left[0], left[-1]) == (0, 599)


def test_a_damaged_request_is_removed_and_its_items_are_counted(open_spool):
    spool = open_spool(300_000)
    recording = Recording(spool)
    names = [f"m{k}" for k in range(200)]
    gauges = [Gauge(name, np.array([time(1)], np.uint64), np.ones(1)) for name in names]
    body = gzip.compress(encode_metrics([Batch({"service.instance.id": "p"}, gauges)]), 1)[:-20]
    for step in range(150):
        recording.put([(step, names)])
        if step == 1:
            spool.put([Encoded("metrics", body, 77)], ["a"], "p", {}, started=True, ended=False)
    found = delivered(spool)["p"]
    losses = spool.losses()
    assert losses["damaged"] == 77
    assert losses["spool_full_scalars"] == recording.points() - sum(map(len, found.values())) > 0
