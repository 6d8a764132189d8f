"""A later attempt shadows points of an earlier one from its own first step of the same metric on, in both stores."""

import numpy as np
import pytest

from support.stores import T0
from tensormeter.otlp.batch import STEP_METRIC, Gauge
from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.store import Selection
from tensormeter.server.store.models.runs import ProcessAttempt

METRICS = ("a", "b", "c")


def rows_of(random):
    """Rows (attempt, rank, time, step, values) of three attempts at a run with two ranks, as their processes log them."""
    for attempt in (1, 2, 3):
        metrics = random.permutation(METRICS)[: random.integers(1, 4)]
        for rank in range(2):
            steps = np.arange(12) + random.integers(0, 20)
            if random.integers(3) == 0:
                steps = random.permutation(steps)
            for index, step in enumerate(steps.tolist()):
                time = T0 + attempt * 10**12 + index * 10**9 + rank
                logged = [metric for metric in metrics if random.integers(3)]
                yield attempt, rank, time, step, {metric: random.random() for metric in logged}


def expected(rows, metric):
    """Return the values of a metric that no later attempt shadows."""
    begins = {}
    for number in {row[0] for row in rows}:
        steps = [row[3] for row in rows if row[0] == number and metric in row[4]]
        if steps:
            begins[number] = min(steps), min(row[2] for row in rows if row[0] == number)
    return {
        values[metric]
        for attempt, _, time, step, values in rows
        if metric in values
        and not any(number > attempt and step >= first and time < began for number, (first, began) in begins.items())
    }


def send(client, rows):
    attempt, rank = rows[0][:2]
    gauges = [gauge(STEP_METRIC, [(row[2], row[3]) for row in rows])]
    for metric in METRICS:
        points = [(row[2], row[4][metric]) for row in rows if metric in row[4]]
        if points:
            gauges.append(gauge(metric, points))
    numbered = {"tensormeter.run.attempt": attempt, "tensormeter.rank": rank}
    client.send(*gauges, process=f"a{attempt}r{rank}", **numbered)


def gauge(name, points):
    return Gauge(name, np.array([time for time, _ in points], np.uint64), np.array([value for _, value in points]))


@pytest.mark.parametrize("seed", range(2))
def test_each_metric_is_shadowed_by_its_own_points_while_requests_arrive(client, seed):
    random = np.random.default_rng(seed)
    rows = list(rows_of(random))
    requests = [rows[first : first + 6] for first in range(0, len(rows), 6)]  # of one process each, as it logs 12 rows
    random.shuffle(requests)
    shown = {metric: set() for metric in METRICS}
    cursors = dict.fromkeys(METRICS)
    sent = []
    for request in requests:
        send(client, request)
        sent += request
        for metric in METRICS:
            query = RunQuery((metric,), Axis.parse("step"), after=cursors[metric], max_points=0)
            reading = RunReader(client.store, client.ref, query).lines()
            values = {value for line in reading.lines for value in line.series.points.values()}
            assert not values & shown[metric] or reading.complete
            shown[metric] = values if reading.complete else shown[metric] | values
            cursors[metric] = reading.cursor
            assert shown[metric] == expected(sent, metric)
    for metric in METRICS:
        raw = RunReader(client.store, client.ref, RunQuery((metric,), Axis.parse("time"))).raw()
        assert {value for series in raw for value in series.points.values()} == expected(rows, metric)


def test_a_new_metric_of_a_later_attempt_changes_no_other(client):
    send(client, [(1, 0, T0 + step, step, {"a": float(step)}) for step in range(10)])
    send(client, [(2, 0, T0 + 10**9, 3, {"b": 1.0})])
    cursor = client.store.changes(None).cursor
    send(client, [(2, 0, T0 + 10**9 + 1, 4, {"c": 1.0})])
    unchanged, changed = (client.store.read(client.ref, Selection([name], after=cursor)) for name in "ac")
    assert [line.metric for line in changed.series] == ["c"]
    assert changed.complete
    if type(client.store).__name__ == "SqliteStore":  # ClickHouse's log has one mark for all metrics of a run
        assert (unchanged.series, unchanged.complete) == ([], False)


def test_steps_in_other_requests_shadow_from_the_first_step_of_the_process(client):
    """Collectors may put the steps of a row into another request than its values."""
    numbered = {"tensormeter.run.attempt": 2, "tensormeter.rank": 3}
    client.append([1, 2, 3], [0, 1, 2], name=STEP_METRIC)
    client.append([1, 2, 3], [5.0, 6.0, 7.0])
    cursor = client.store.changes(None).cursor
    client.append([11, 12], [2, 3], name=STEP_METRIC, process="q", **numbered)
    reading = client.store.read(client.ref, Selection(["v"], after=cursor))
    assert reading.attempts == {"p": ProcessAttempt(1, {}, 0, None), "q": ProcessAttempt(2, {}, 11, 3)}
    client.append([11, 12], [8.0, 9.0], process="q", **numbered)
    assert client.store.read(client.ref, Selection([], shadowing=["v"])).attempts["q"].first_steps == {"v": 2}
