"""A model of two servers on one ClickHouse, which die between the inserts of commits."""

import numpy as np
import pytest
from hypothesis import strategies as st

from support.stores import append_batches
from tensormeter.otlp.batch import STEP_METRIC, Batch, Gauge, Histogram
from tensormeter.server.store import NotFoundError, RunRef, Selection, StoreUnavailableError
from tensormeter.server.store.clickhouse.connection import Connection

T0 = 1_750_000_000_000_000_000
TIMES = st.tuples(st.integers(0, 20), st.integers(1, 6)).map(lambda pair: range(pair[0], sum(pair)))
SERVER = st.integers(0, 1)
INSERT = st.integers(0, 8)  # a commit of these requests has six to nine
ACTIONS = st.one_of(
    st.tuples(st.just("send"), SERVER, TIMES),
    st.tuples(st.just("die"), SERVER, TIMES, INSERT),
    st.tuples(st.just("interleave"), TIMES, TIMES, INSERT),
    st.tuples(st.just("both"), TIMES, INSERT),
    st.tuples(st.just("again"), SERVER, st.integers(0, 9)),
    st.just(("late",)),
    st.just(("merge",)),
)


def value_at(time):
    """The value that senders log at a time: some are NaN, and some batches have no other."""
    return float("nan") if time % 5 == 0 else float(time * 7 % 11 - 5)


def points_of(series):
    return zip(series.points.times.tolist(), series.points.values(), strict=True)


def same(value, other):
    return value == other or (value != value and other != other)


class History:
    """The requests of one run to two failing servers, and the points that a reader with a cursor has."""

    def __init__(self, stores, connection, run):
        self.stores, self.connection, self.ref = stores, connection, RunRef(run)
        self.requests = []
        self.sent, self.accepted = set(), set()
        self.pending, self.late = [], []
        self.cursor, self.read = stores[0].changes(None).cursor, {}

    def request(self, times):
        nanoseconds = np.array([T0 + time for time in times], np.uint64)
        ones = np.ones(len(times))
        counts = np.array([[1, 0]] * len(times), np.uint64)
        values = np.array([value_at(time) for time in times])
        series = [
            Gauge(STEP_METRIC, nanoseconds, np.array(times)),
            Gauge("v", nanoseconds, values),
            Histogram("h", nanoseconds, nanoseconds, counts[:, 0], ones, ones, ones, np.array([1.0]), counts),
        ]
        batch = Batch({"tensormeter.run.id": self.ref.run_id, "service.instance.id": "p"}, series)
        self.requests.append((times, batch, f"{self.ref.run_id}-{len(self.requests)}"))
        self.sent |= set(times)
        return self.requests[-1]

    def send(self, server, request, *, before=None, then=None):
        """Send a request. Before that insert of its commit the server does `then`, or dies if there is nothing to do."""
        times, batch, batch_id = request
        store = self.stores[server]
        insert, inserts = Connection.insert, 0

        def failing_insert(connection, table, columns, rows):
            nonlocal inserts
            if connection is store._connection:
                inserts += 1
                if inserts == before + 1:
                    if then is None:
                        self.late.append(lambda: insert(connection, table, columns, rows))
                    else:
                        patch.undo()
                        then()
                if inserts > before and then is None:
                    raise StoreUnavailableError("dead")
            insert(connection, table, columns, rows)

        with pytest.MonkeyPatch.context() as patch:
            if before is not None:
                patch.setattr(Connection, "insert", failing_insert)
            try:
                receipt = append_batches(store, batch, batch_id=batch_id)
            except StoreUnavailableError:
                assert before is not None
                assert then is None
                self.pending.append(request)
                return None
        self.accepted |= set(times)
        if then is not None and inserts <= before:
            then()
        return receipt

    def do(self, action):
        match action:
            case "send", server, times:
                self.send(server, self.request(times))
            case "die", server, times, before:
                self.send(server, self.request(times), before=before)
            case "interleave", times, others, before:
                other = self.request(others)
                self.send(0, self.request(times), before=before, then=lambda: self.other_server(other))
            case "both", times, before:
                request = self.request(times)
                self.send(0, request, before=before, then=lambda: self.other_server(request))
            case "again", server, index if self.pending:
                self.send(server, self.pending.pop(index % len(self.pending)))
            case ("late",):
                while self.late:
                    self.late.pop()()
            case ("merge",):
                for table in ("points", "distributions", "catalog", "summary", "process"):
                    self.connection.execute(f"OPTIMIZE TABLE {table} FINAL")
        self.read_on()

    def other_server(self, request):
        self.send(1, request)
        self.read_on()

    def read_on(self):
        """Read what is new. Every accepted point is there, and nothing that was never sent."""
        try:
            reading = self.stores[1].read(self.ref, Selection(["v"], after=self.cursor))
        except NotFoundError:
            assert not self.accepted
            return
        points = {time - T0: value for series in reading.series for time, value in points_of(series)}
        self.cursor, self.read = reading.cursor, points if reading.complete else self.read | points
        assert self.accepted <= self.read.keys() <= self.sent
        assert all(same(value, value_at(time)) for time, value in self.read.items())

    def check(self, store):
        """Everything was accepted, so the store equals a dictionary."""
        self.read_on()
        expected = {time: value_at(time) for time in sorted(self.sent)}
        assert self.read.keys() == expected.keys()
        selections = Selection(["v", STEP_METRIC]), Selection(["h"], numeric=False)
        lines = [line for selection in selections for line in store.read(self.ref, selection).series]
        assert [line.metric for line in lines] == [STEP_METRIC, "v", "h"]
        for line in lines:
            assert (line.points.times - T0).tolist() == [*expected]
        assert lines[0].points.values() == [*expected]
        assert all(map(same, lines[1].points.values(), expected.values()))
        assert {line.metric: line.points for line in store.metrics(self.ref)} == dict.fromkeys(
            (STEP_METRIC, "v", "h"), len(expected)
        )
        run = store.run(self.ref)
        assert (run.points, run.processes) == (3 * len(expected), 1)
        summary = run.summary["v"]
        numbers = [value for value in expected.values() if value == value] or [float("nan")]
        assert summary.count == len(expected)
        assert same(summary.min, min(numbers))
        assert same(summary.max, max(numbers))
        assert summary.mean == pytest.approx(sum(numbers) / len(numbers), nan_ok=True)
        assert same(summary.last, value_at(max(expected)))
        assert (summary.last_step, summary.last_time) == (max(expected), T0 + max(expected))
