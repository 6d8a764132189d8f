"""The ClickHouse store by itself: deaths between its inserts, and several servers."""

import concurrent.futures
import os
import random
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import urllib3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.server.store import NotFoundError, RunRef, Selection, StoreUnavailableError, TooManyPointsError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.connection import Connection

T0 = 1_750_000_000_000_000_000
KILLS = max(2, int(os.environ.get("TENSORMETER_TEST_KILLS", "8")) // 4)  # `make chaos` asks for many more
ROWS = 20


@pytest.fixture(scope="module")
def address(clickhouse):
    return parse_address(f"clickhouse://127.0.0.1:{clickhouse}/alone", {})


@pytest.fixture
def open_store(address):
    opened = []

    def open_store():
        opened.append(ClickHouseStore(address, commit_interval=0))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def request_of_kinds(run):
    times = np.arange(T0, T0 + 3).astype(np.uint64)
    ones = np.ones(3)
    histogram = Histogram(
        "h", times, times, np.ones(3, np.uint64), ones, ones, ones, np.array([1.0]), np.array([[1, 0]] * 3, np.uint64)
    )
    series = [Gauge(STEP_METRIC, times, np.arange(3)), Gauge("v", times, np.array([1.0, 2.0, 6.0])), histogram]
    return encode_metrics([Batch({"tensormeter.run.id": run, "service.instance.id": "p"}, series)])


@pytest.mark.parametrize("survivor", ["the same server", "another server"])
def test_a_failure_before_any_insert_is_healed_by_sending_again(open_store, monkeypatch, survivor):
    """Every place at which a server can die, or ClickHouse refuse, between the inserts of a commit."""
    first, second = open_store(), open_store()
    other = first if survivor == "the same server" else second
    insert = Connection.insert
    kinds = 0
    for failing in range(20):
        run = f"broken-{survivor.partition(' ')[0]}-{failing}"
        ref = RunRef(run)
        payload = request_of_kinds(run)
        cursor = second.changes(None).cursor
        made = []

        def maybe(connection, table, columns, rows, failing=failing, made=made):
            made.append(table)
            if len(made) > failing:
                raise StoreUnavailableError("dead")
            insert(connection, table, columns, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Connection, "insert", maybe)
            try:
                first.append_metrics(decode_metrics(payload), payload=payload, batch_id=run)
            except StoreUnavailableError:
                pass
            else:
                break
        kinds += 1
        assert not other.append_metrics(decode_metrics(payload), payload=payload, batch_id=run).duplicate
        assert other.append_metrics(decode_metrics(payload), payload=payload, batch_id=run).duplicate
        # A reader with a cursor gets all points: as new ones, or because its cursor is not valid any more.
        (series,) = second.read(ref, Selection(["v"], after=cursor)).series
        assert series.points.values() == [1.0, 2.0, 6.0]
        (blobs,) = second.read(ref, Selection(["h"], numeric=False)).series
        assert len(blobs.points) == 3
        assert run in {change.run.run_id for change in second.changes(cursor).changes}
    assert kinds == 6
    for failing in range(kinds + 1):
        ref = RunRef(f"broken-{survivor.partition(' ')[0]}-{failing}")
        run = second.run(ref)
        assert (run.points, run.processes) == (9, 1)
        summary = run.summary["v"]
        assert (summary.count, summary.mean, summary.last, summary.last_step) == (3, 3.0, 6.0, 2)
        counts = {metric.metric: metric.points for metric in second.metrics(ref)}
        assert counts == dict.fromkeys((STEP_METRIC, "v", "h"), 3)


TIMES = st.tuples(st.integers(0, 20), st.integers(1, 6)).map(lambda pair: range(pair[0], sum(pair)))
SERVER = st.integers(0, 1)
INSERT = st.integers(0, 7)  # a commit of these requests has six to eight
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
        payload = encode_metrics([Batch({"tensormeter.run.id": self.ref.run_id, "service.instance.id": "p"}, series)])
        self.requests.append((times, payload, f"{self.ref.run_id}-{len(self.requests)}"))
        self.sent |= set(times)
        return self.requests[-1]

    def send(self, server, request, *, before=None, then=None):
        """Send a request. Before that insert of its commit the server does `then`, or dies if there is nothing to do."""
        times, payload, batch_id = request
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
                receipt = store.append_metrics(decode_metrics(payload), payload=payload, batch_id=batch_id)
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
                for table in ("points", "distributions", "series", "process"):
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


def points_of(series):
    return zip(series.points.times.tolist(), series.points.values(), strict=True)


def same(value, other):
    return value == other or (value != value and other != other)


# Without `Phase.shrink`, which would take minutes: the histories are short.
@settings(
    max_examples=8 * KILLS,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(ACTIONS, min_size=1, max_size=8))
def test_any_history_of_failures_equals_a_dictionary(two_servers, history):
    """Servers die before any insert, which may take effect later; requests are sent again to either; ClickHouse merges."""
    stores, connection = two_servers
    model = History(stores, connection, f"history-{secrets.token_hex(8)}")
    for action in history:
        model.do(action)
    while model.pending:
        model.do(("again", len(model.pending) % 2, 0))
    if model.sent:
        model.check(stores[0])
        model.do(("late",))
        model.check(stores[1])
        model.do(("merge",))
        model.check(stores[0])
    for request in model.requests:
        assert model.send(1, request).duplicate


@pytest.fixture(scope="module")
def two_servers(address):
    """Two servers, and a separate connection for merges. Points of a commit go in by several inserts."""
    stores = [ClickHouseStore(address, commit_interval=0) for _ in range(2)]
    connection = Connection(address, address.database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensormeter.server.store.clickhouse.series_batch._ROWS", 5)
        yield stores, connection
    connection.close()
    for store in stores:
        store.close()


def test_counts_of_an_idle_run_are_cached_until_something_arrives(open_store, monkeypatch):
    store, ref = open_store(), RunRef("idle")
    payload = request_of_kinds("idle")
    store.append_metrics(decode_metrics(payload), payload=payload)
    statements, rows = [], Connection.rows

    def counting_rows(connection, statement, **parameters):
        statements.append(statement)
        return rows(connection, statement, **parameters)

    def counts():
        """The counts, and how many statements counted points for them."""
        statements.clear()
        run = store.run(ref)
        (count,) = [metric.points for metric in store.metrics(ref) if metric.metric == "v"]
        counting = [
            statement for statement in statements if "FROM points FINAL" in statement and "count()" in statement
        ]
        return run.points, run.summary["v"].count, count, len(counting)

    monkeypatch.setattr(Connection, "rows", counting_rows)
    assert counts() == counts() == (9, 3, 3, 3)  # something arrived lately
    monkeypatch.setattr("tensormeter.server.store.clickhouse.point_counts._IDLE", 0)
    assert counts() == (9, 3, 3, 3)
    assert counts() == (9, 3, 3, 0)
    gauge = Gauge("v", np.array([T0 + 10], np.uint64), np.array([1.0]))
    more = encode_metrics([Batch({"tensormeter.run.id": "idle", "service.instance.id": "p"}, [gauge])])
    store.append_metrics(decode_metrics(more), payload=more)
    assert counts() == (10, 4, 4, 3)


def test_the_names_of_metrics_take_up_room_in_the_cache_of_counts(open_store, monkeypatch):
    """Every set of metrics that a client asks for has a separate entry, with their names."""
    store = open_store()
    payload = request_of_kinds("named")
    store.append_metrics(decode_metrics(payload), payload=payload)
    monkeypatch.setattr("tensormeter.server.store.clickhouse.point_counts._IDLE", 0)
    monkeypatch.setattr("tensormeter.server.store.clickhouse.point_counts._CACHED", 100)
    (run,) = store._runs.existing([RunRef("named")])
    asked, rows = [], Connection.rows

    def recording_rows(connection, statement, **parameters):
        if "FROM points FINAL" in statement and "metrics" in parameters:
            asked.append(parameters["metrics"][0][0])
        return rows(connection, statement, **parameters)

    monkeypatch.setattr(Connection, "rows", recording_rows)
    for number in (0, 0, 1, 2, 3, 0):
        store.runs([run], [f"{number}-{index}".ljust(200, "x") for index in range(10)])
    assert asked == ["0", "1", "2", "3", "0"]


def test_points_that_two_servers_stored_at_once_count_once_for_the_limit_of_a_read(open_store, monkeypatch):
    first, second = open_store(), open_store()
    payload = request_of_kinds("limit")
    insert = Connection.insert

    def overtaken(connection, table, columns, rows):
        if table == "points":
            patch.undo()
            second.append_metrics(decode_metrics(payload), payload=payload)
        insert(connection, table, columns, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "insert", overtaken)
        first.append_metrics(decode_metrics(payload), payload=payload)
    (series,) = second.read(RunRef("limit"), Selection(["v"], limit=3)).series
    assert series.points.values() == [1.0, 2.0, 6.0]
    with pytest.raises(TooManyPointsError, match="3 points here"):
        second.read(RunRef("limit"), Selection(["v"], limit=2))


def test_events_after_a_failure(open_store, monkeypatch):
    store = open_store()
    insert = Connection.insert
    for failing in range(4):
        run = f"event-{failing}"
        event = Event("note", T0, {"image": {"data": b"\xff\xd8\xff", "content_type": "image/jpeg"}})
        payload = encode_events({"tensormeter.run.id": run}, [event])
        made = []

        def maybe(connection, table, columns, rows, failing=failing, made=made):
            made.append(table)
            if len(made) > failing:
                raise StoreUnavailableError("dead")
            insert(connection, table, columns, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Connection, "insert", maybe)
            with pytest.raises(StoreUnavailableError, match="dead"):
                store.append_events(decode_events(payload), payload=payload, batch_id=run)
        store.append_events(decode_events(payload), payload=payload, batch_id=run)
        (stored,) = store.events(RunRef(run))
        assert store.media(RunRef(run), stored.body["image"]["digest"])[1] == b"\xff\xd8\xff"


def test_a_program_error_reaches_all_who_wait_and_is_not_hidden(open_store, monkeypatch):
    store = open_store()
    payload = request_of_kinds("bug")
    with monkeypatch.context() as patch:
        patch.setattr("tensormeter.server.store.clickhouse.commit.encode_points", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.append_metrics(decode_metrics(payload), payload=payload)
    store.append_metrics(decode_metrics(payload), payload=payload)
    assert store.run(RunRef("bug")).points == 9


def test_what_is_logged_is_logged_in_order(open_store, monkeypatch):
    """Or a reader's cursor would pass over what appears behind it."""
    store = open_store()
    write, numbers = Log.write, []

    def record(log, arrived):
        numbers.extend(commit.number for commit in arrived)
        write(log, arrived)

    payload = request_of_kinds("ordered")
    store.append_metrics(decode_metrics(payload), payload=payload)
    monkeypatch.setattr(Log, "write", record)

    def alerts():
        for i in range(10):
            store.raise_alert(RunRef("ordered"), Event("tensormeter.alert", T0 + i, None))

    def points():
        for i in range(10):
            gauge = Gauge("w", np.array([i + 1], np.uint64), np.array([1.0]))
            body = encode_metrics([Batch({"tensormeter.run.id": "ordered", "service.instance.id": "p"}, [gauge])])
            store.append_metrics(decode_metrics(body), payload=body)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(alerts), pool.submit(points)]:
            done.result()
    assert len(numbers) >= 20
    assert numbers == sorted(numbers)


class Breaking(BaseHTTPRequestHandler):
    """Passes requests on, but hangs up instead of answering where an insert has the marked table, once."""

    protocol_version = "HTTP/1.1"
    target = ""
    marked = b"INSERT INTO points "
    broken = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = urllib3.request(
            "POST", self.target + self.path, body=body, headers={"Content-Type": "text/plain"}, retries=False
        )
        if self.marked in unquote_to_bytes(self.path.replace("+", " ")) + body and not type(self).broken:
            type(self).broken += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name in ("X-ClickHouse-Summary", "X-ClickHouse-Format", "X-ClickHouse-Exception-Code"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.data)))
        self.end_headers()
        self.wfile.write(answer.data)

    def log_message(self, *_):
        pass


def test_an_insert_whose_answer_is_lost_is_not_counted_twice(clickhouse):
    Breaking.target = f"http://127.0.0.1:{clickhouse}"
    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        store = ClickHouseStore(
            parse_address(f"clickhouse://127.0.0.1:{proxy.server_port}/lost", {}), commit_interval=0
        )
        try:
            payload = request_of_kinds("lost")
            with pytest.raises(StoreUnavailableError):
                store.append_metrics(decode_metrics(payload), payload=payload, batch_id="lost")
            assert Breaking.broken == 1
            store.append_metrics(decode_metrics(payload), payload=payload, batch_id="lost")
            assert store.run(RunRef("lost")).summary["v"].count == 3
        finally:
            store.close()
            proxy.shutdown()


def test_two_servers_see_each_other_at_once(open_store):
    first, second = open_store(), open_store()
    cursor = second.changes(None).cursor
    payload = request_of_kinds("shared")
    first.append_metrics(decode_metrics(payload), payload=payload)
    assert second.run(RunRef("shared")).points == 9
    (change,) = second.changes(cursor).changes
    assert (change.run.run_id, change.metrics) == ("shared", ["h", STEP_METRIC, "v"])
    reading = second.read(RunRef("shared"), Selection(["v"], after=cursor))
    assert (reading.complete, len(reading.series)) == (False, 1)
    second.delete(RunRef("shared"))
    assert first.append_metrics(decode_metrics(payload), payload=payload).rejected == 9


def test_two_servers_and_kills(start, make, eventually, clickhouse, tmp_path):
    """Every batch goes to one of two servers, which are killed again and again, and after a failure to the other."""
    where = f"clickhouse://127.0.0.1:{clickhouse}/killed"
    chaos = random.Random(7)
    acknowledged = set()
    sent = iter(range(100_000))
    lock = threading.Lock()
    retry = []

    def batch(index):
        rows = [(T0 + index * ROWS + i, index * ROWS + i, {"v": float(index * ROWS + i)}) for i in range(ROWS)]
        return make.rows("killed", rows)

    def begin(name):
        return start("--store", where, folder=tmp_path / name)

    servers = [begin("0"), begin("1")]
    for kill in range(KILLS):
        stop = threading.Event()

        def send(first, stop=stop):
            turn = first
            while not stop.is_set():
                with lock:
                    index = retry.pop() if retry else next(sent)
                try:
                    answer = servers[turn % 2].metrics(batch(index), batch_id=f"killed-{index}")
                except (urllib3.exceptions.HTTPError, OSError):
                    with lock:
                        retry.append(index)
                    turn += 1
                    continue
                assert answer.status == 200, answer.data
                with lock:
                    acknowledged.add(index)

        goal = len(acknowledged) + chaos.randrange(5, 15)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            sending = [pool.submit(send, turn) for turn in range(4)]
            try:
                eventually(lambda goal=goal: len(acknowledged) >= goal)
                servers[kill % 2].kill()
                survived = len(acknowledged)
                eventually(lambda least=survived + 5: len(acknowledged) >= least)
            finally:
                stop.set()
            for future in sending:
                future.result()
        servers[kill % 2] = begin(str(kill % 2))
    for index in [*retry, *sorted(acknowledged)[:10]]:
        assert servers[0].metrics(batch(index), batch_id=f"killed-{index}").status == 200
        acknowledged.add(index)
    (series,) = servers[1].get("/api/v1/runs/killed/series", metric="v")["series"]
    assert series["step"] == [index * ROWS + i for index in sorted(acknowledged) for i in range(ROWS)]
    assert series["value"] == [float(step) for step in series["step"]]
    run = servers[1].get("/api/v1/runs/killed")
    assert run["points"] == 2 * len(series["step"])
    assert run["summary"]["v"]["count"] == len(series["step"])
    assert servers[1].metrics(batch(10**6), batch_id="killed-0").status == 409
