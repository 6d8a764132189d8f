"""Another metric as the x axis: a point gets the metric's last value at or before its step, in both stores."""

import numpy as np
import pytest

from support.stores import T0
from tensormeter.otlp.batch import STEP_METRIC, Gauge
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery

AXIS = Axis.parse("metric:epoch")
SECOND = 10**9
HOUR = 3600 * SECOND


def send(client, rows, process="p", **resource):
    """Send rows of (time, step, values) in one request. A row with the step None has none."""
    steps = [(time, step) for time, step, _ in rows if step is not None]
    gauges = [gauge(STEP_METRIC, steps)] if steps else []
    names = sorted({name for _, _, values in rows for name in values})
    gauges += [gauge(name, [(time, values[name]) for time, _, values in rows if name in values]) for name in names]
    client.send(*gauges, process=process, **resource)


def gauge(name, points):
    times = np.array([T0 + time for time, _ in points], np.uint64)
    return Gauge(name, times, np.array([value for _, value in points]))


def line(client, metric="eval", **query):
    reading = RunReader(client.store, client.ref, RunQuery((metric,), AXIS, max_points=0, **query)).lines()
    return reading, [(x, y) for line in reading.lines for x, y in zip(line.x, line.series.points.values(), strict=True)]


def test_values_of_other_log_calls_get_the_last_value_at_or_before_their_step(client):
    rows = [(10 * step, step, {"loss": 1.0 * step, "epoch": step / 2}) for step in range(2, 6)]
    rows[2][2]["epoch"] = float("nan")
    rows += [(21, 1, {"eval": 0.1}), (31, 3, {"eval": 0.3}), (41, 4, {"eval": 0.4}), (90, 9, {"eval": 0.9})]
    rows += [(91, 9, {"eval": 1.0, "epoch": 7.0}), (92, 9, {"eval": 1.1}), (93, None, {"eval": 1.2})]
    send(client, sorted(rows, key=lambda row: row[0]))
    # Step 1 precedes the first epoch, NaN counts as missing, and of several values at a step the last one is used.
    assert line(client)[1] == [(1.5, 0.3), (1.5, 0.4), (7.0, 0.9), (7.0, 1.0), (7.0, 1.1)]
    assert line(client, "loss")[1] == [(1.0, 2.0), (1.5, 3.0), (1.5, 4.0), (2.5, 5.0)]
    assert line(client, start=2.0, stop=7.0)[1] == []
    assert line(client, start=7.0)[1] == [(7.0, 0.9), (7.0, 1.0), (7.0, 1.1)]


def test_x_values_are_those_of_the_same_process(client):
    for attempt, first, base in ((1, 0, 0.0), (2, 3, 50.0)):
        rows = [(attempt * HOUR + step, first + step, {"epoch": base + step}) for step in range(4)]
        rows.append((attempt * HOUR + 9, first + 2, {"eval": attempt / 10}))
        send(client, rows, f"a{attempt}", **{"tensormeter.run.attempt": attempt, "tensormeter.rank": 0})
    send(client, [(9, 3, {"eval": 0.9})], "without")
    assert line(client)[1] == [(2.0, 0.1), (52.0, 0.2)]


@pytest.mark.parametrize("pause", [SECOND, 1000 * HOUR])
def test_new_points_get_x_values_that_arrived_before(client, pause):
    send(client, [(step, step, {"epoch": step / 2}) for step in range(4)])
    send(client, [(step, step, {"loss": 0.0}) for step in range(4)], "without")
    cursor = client.store.changes(None).cursor
    send(client, [(pause, 7, {"eval": 0.7}), (pause + 1, 8, {"eval": 0.8})])
    send(client, [(pause, 7, {"eval": 0.1})], "without")
    reading, points = line(client, after=cursor)
    assert (reading.complete, points) == (False, [(1.5, 0.7), (1.5, 0.8)])
    cursor = reading.cursor
    send(client, [(pause + 2, 9, {"epoch": 4.0}), (pause + 3, 9, {"eval": 0.9})])
    assert line(client, after=cursor)[1] == [(4.0, 0.9)]
    assert line(client)[1] == [(1.5, 0.7), (1.5, 0.8), (4.0, 0.9)]
