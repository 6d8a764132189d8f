"""The ClickHouse store by itself: deaths between its inserts, and several servers."""

import concurrent.futures
import os
import random
import secrets
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import urllib3
from clickhouse_history import ACTIONS, T0, History
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.stores import append_batches, append_events, append_values
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram
from tensormeter.server.store import RunRef, Selection, StoreUnavailableError, TooManyPointsError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.connection import Connection

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
    return Batch({"tensormeter.run.id": run, "service.instance.id": "p"}, series)


@contextmanager
def dead_after(inserts):
    """A connection that refuses each insert after the first ones of a request."""
    insert, tables = Connection.insert, []

    def refuse(connection, table, columns, rows):
        tables.append(table)
        if len(tables) > inserts:
            raise StoreUnavailableError("dead")
        insert(connection, table, columns, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "insert", refuse)
        yield


@pytest.mark.parametrize("survivor", ["the same server", "another server"])
def test_a_failure_before_any_insert_is_healed_by_sending_again(open_store, survivor):
    """Every place at which a server can die, or ClickHouse refuse, between the inserts of a commit."""
    first, second = open_store(), open_store()
    other = first if survivor == "the same server" else second
    kinds = 0
    for failing in range(20):
        run = f"broken-{survivor.partition(' ')[0]}-{failing}"
        ref = RunRef(run)
        batch = request_of_kinds(run)
        cursor = second.changes(None).cursor
        with dead_after(failing):
            try:
                append_batches(first, batch, batch_id=run)
            except StoreUnavailableError:
                pass
            else:
                break
        kinds += 1
        assert not append_batches(other, batch, batch_id=run).duplicate
        assert append_batches(other, batch, batch_id=run).duplicate
        # A reader with a cursor gets all points: as new ones, or because its cursor is not valid any more.
        (series,) = second.read(ref, Selection(["v"], after=cursor)).series
        assert series.points.values() == [1.0, 2.0, 6.0]
        (blobs,) = second.read(ref, Selection(["h"], numeric=False)).series
        assert len(blobs.points) == 3
        assert run in {change.run.run_id for change in second.changes(cursor).changes}
    assert kinds == 7
    for failing in range(kinds + 1):
        ref = RunRef(f"broken-{survivor.partition(' ')[0]}-{failing}")
        run = second.run(ref)
        assert (run.points, run.processes) == (9, 1)
        summary = run.summary["v"]
        assert (summary.count, summary.mean, summary.last, summary.last_step) == (3, 3.0, 6.0, 2)
        counts = {metric.metric: metric.points for metric in second.metrics(ref)}
        assert counts == dict.fromkeys((STEP_METRIC, "v", "h"), 3)


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
    append_batches(store, request_of_kinds("idle"))
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
    append_values(store, [T0 + 10], [1.0], run="idle")
    assert counts() == (10, 4, 4, 3)


def test_the_names_of_metrics_take_up_room_in_the_cache_of_counts(open_store, monkeypatch):
    """Every set of metrics that a client asks for has a separate entry, with their names."""
    store = open_store()
    append_batches(store, request_of_kinds("named"))
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
    batch = request_of_kinds("limit")
    insert = Connection.insert

    def overtaken(connection, table, columns, rows):
        if table == "points":
            patch.undo()
            append_batches(second, batch)
        insert(connection, table, columns, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "insert", overtaken)
        append_batches(first, batch)
    (series,) = second.read(RunRef("limit"), Selection(["v"], limit=3)).series
    assert series.points.values() == [1.0, 2.0, 6.0]
    with pytest.raises(TooManyPointsError, match="3 points, but"):
        second.read(RunRef("limit"), Selection(["v"], limit=2))


def test_events_after_a_failure(open_store):
    store = open_store()
    for failing in range(4):
        run = f"event-{failing}"
        event = Event("note", T0, {"image": {"data": b"\xff\xd8\xff", "content_type": "image/jpeg"}})
        with dead_after(failing), pytest.raises(StoreUnavailableError, match="dead"):
            append_events(store, {"tensormeter.run.id": run}, event, batch_id=run)
        append_events(store, {"tensormeter.run.id": run}, event, batch_id=run)
        (stored,) = store.events(RunRef(run))
        assert store.media(RunRef(run), stored.body["image"]["digest"])[1] == b"\xff\xd8\xff"


def test_a_program_error_reaches_all_who_wait_and_is_not_hidden(open_store, monkeypatch):
    store = open_store()
    batch = request_of_kinds("bug")
    with monkeypatch.context() as patch:
        patch.setattr("tensormeter.server.store.clickhouse.commit.encode_points", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            append_batches(store, batch)
    append_batches(store, batch)
    assert store.run(RunRef("bug")).points == 9


def test_what_is_logged_is_logged_in_order(open_store, monkeypatch):
    """Or a reader's cursor would pass over what appears behind it."""
    store = open_store()
    write, numbers = Log.write, []

    def record(log, arrived):
        numbers.extend(commit.number for commit in arrived)
        write(log, arrived)

    append_batches(store, request_of_kinds("ordered"))
    monkeypatch.setattr(Log, "write", record)

    def alerts():
        for i in range(10):
            store.raise_alert(RunRef("ordered"), Event("tensormeter.alert", T0 + i, None))

    def points():
        for i in range(10):
            append_values(store, [i + 1], [1.0], name="w", run="ordered")

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
            batch = request_of_kinds("lost")
            with pytest.raises(StoreUnavailableError):
                append_batches(store, batch, batch_id="lost")
            assert Breaking.broken == 1
            append_batches(store, batch, batch_id="lost")
            assert store.run(RunRef("lost")).summary["v"].count == 3
        finally:
            store.close()
            proxy.shutdown()


def test_two_servers_see_each_other_at_once(open_store):
    first, second = open_store(), open_store()
    cursor = second.changes(None).cursor
    batch = request_of_kinds("shared")
    append_batches(first, batch)
    assert second.run(RunRef("shared")).points == 9
    (change,) = second.changes(cursor).changes
    assert (change.run.run_id, change.metrics) == ("shared", ["h", STEP_METRIC, "v"])
    reading = second.read(RunRef("shared"), Selection(["v"], after=cursor))
    assert (reading.complete, len(reading.series)) == (False, 1)
    second.delete(RunRef("shared"))
    assert append_batches(first, batch).rejected == 9


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
