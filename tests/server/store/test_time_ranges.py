"""Ranges of times on each store, with bounds that are x values of the store's own answers, or next to them."""

import numpy as np
import pytest

from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import SampledSeries, query_points

T0 = 1_790_000_000_000_000_000


def query(client, x, start=None, stop=None, max_points=0) -> SampledSeries | None:
    wanted = RunQuery(("v",), Axis.parse(x), start, stop, max_points=max_points)
    series = query_points(client.store, [client.ref], wanted).series
    return series[0] if series else None


def around(x: float) -> tuple[float, float, float]:
    return x, float(np.nextafter(x, np.inf)), float(np.nextafter(x, -np.inf))


@pytest.mark.parametrize("x", ["time", "relative"])
def test_bounds_are_those_of_the_returned_x(client, x):
    times = T0 + np.arange(60) * 1_234_567 + np.arange(60) % 7
    client.append(times.tolist(), np.arange(60.0).tolist())
    everything = query(client, x).x
    for at in everything[::6].tolist():
        for bound in around(at):
            after, before = query(client, x, start=bound), query(client, x, stop=bound)
            assert (after.x if after else np.empty(0)).tolist() == everything[everything >= bound].tolist()
            assert (before.x if before else np.empty(0)).tolist() == everything[everything < bound].tolist()
    assert query(client, x, start=1e10) is None
    assert query(client, x, stop=1e10).total == 60


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("x", ["time", "relative"])
def test_bounds_of_sampled_lines_are_those_of_the_returned_x(client, x):
    n = 20_000
    times = T0 + np.arange(n) * 1_234_567 + np.arange(n) % 7
    client.append(times.tolist(), np.arange(float(n)).tolist())
    getattr(client.store, "flush", lambda: None)()
    everything = query(client, x).x
    for at in everything[[1, 511, 512, 5000]].tolist():
        for bound in around(at):
            sampled = query(client, x, start=bound, max_points=4)
            assert (sampled.x[0], sampled.total) == (everything[everything >= bound][0], np.sum(everything >= bound))
            sampled = query(client, x, stop=everything[-1] - at + bound, max_points=4)
            inside = everything < everything[-1] - at + bound
            assert (sampled.x[-1], sampled.total) == (everything[inside][-1], np.sum(inside))
