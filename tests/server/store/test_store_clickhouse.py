"""The ClickHouse store by itself: deaths between its inserts, and several servers."""

import concurrent.futures
import math
import os
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import urllib3

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.server.store import RunRef, Selection, StoreUnavailableError
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.recount import RECOUNT_AFTER, Recount

T0 = 1_750_000_000_000_000_000
KILLS = max(2, int(os.environ.get("TENSORMETER_TEST_KILLS", "8")) // 4)  # `make chaos` asks for many more
ROWS = 20


@pytest.fixture(scope="module")
def address(clickhouse):
    return parse_address(f"clickhouse://127.0.0.1:{clickhouse}/alone", {})


def recount(store):
    """Have a store count what dead commits have left uncounted, as servers do some minutes later. Nobody may commit meanwhile."""
    store._recount._after = 0
    store.fold()
    store._recount._after = RECOUNT_AFTER


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

        def maybe(connection, table, columns, rows, *, token="", failing=failing, made=made):
            made.append(table)
            if len(made) > failing:
                raise StoreUnavailableError("dead")
            insert(connection, table, columns, rows, token=token)

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
        # Who reads on from before sees all of it: as what is new, or because it must read anew.
        (series,) = second.read(ref, Selection(["v"], after=cursor)).series
        assert series.points.values() == [1.0, 2.0, 6.0]
        (blobs,) = second.read(ref, Selection(["h"], numeric=False)).series
        assert len(blobs.points) == 3
        assert run in {change.run.run_id for change in second.changes(cursor).changes}
    assert kinds == 7
    recount(other)
    for failing in range(kinds + 1):
        ref = RunRef(f"broken-{survivor.partition(' ')[0]}-{failing}")
        found = second.run(ref)
        assert (found.points, found.processes) == (9, 1)
        summary = found.summary["v"]
        assert (summary.count, summary.mean, summary.last, summary.last_step) == (3, 3.0, 6.0, 2)
        counts = {metric.metric: metric.points for metric in second.metrics(ref)}
        assert counts == dict.fromkeys((STEP_METRIC, "v", "h"), 3)


class Sender:
    """Sends points of one series of a run, through a store that may die."""

    def __init__(self, run, monkeypatch):
        self.run = run
        self.monkeypatch = monkeypatch
        self.sent = 0

    def send(self, store, first, points=3, *, die_before=None, then=None):
        """Points of value 1 from a time on. Where a table is inserted, the store dies, or does `then` first."""
        times = np.arange(T0 + first, T0 + first + points).astype(np.uint64)
        payload = encode_metrics(
            [Batch({"tensormeter.run.id": self.run, "service.instance.id": "p"}, [Gauge("v", times, np.ones(points))])]
        )
        self.sent += 1
        insert = Connection.insert
        late = []

        def maybe(connection, table, columns, rows, *, token=""):
            if table == die_before:
                late.append(lambda: insert(connection, table, columns, rows, token=token))
                patch.undo()
                if then is None:
                    raise StoreUnavailableError("dead")
                then()
            insert(connection, table, columns, rows, token=token)

        with self.monkeypatch.context() as patch:
            patch.setattr(Connection, "insert", maybe)
            try:
                store.append_metrics(decode_metrics(payload), payload=payload, batch_id=f"{self.run}-{self.sent}")
            except StoreUnavailableError:
                assert die_before
                assert then is None
        assert bool(late) == bool(die_before)
        return late

    def there(self, store):
        """How many points there are."""
        return sum(len(series.points) for series in store.read(RunRef(self.run), Selection(["v"])).series)

    def counted(self, store):
        """How many points there are, and what the sums say of it."""
        (series,) = store.read(RunRef(self.run), Selection(["v"])).series
        found = store.run(RunRef(self.run))
        summary = found.summary["v"]
        assert summary.count == found.points == store.metrics(RunRef(self.run))[0].points
        assert (summary.mean, summary.last, summary.max) == (1.0, 1.0, 1.0)
        return len(series.points), summary.count


@pytest.fixture
def sender(request, monkeypatch):
    return Sender(request.node.name[:60].replace("[", "-").strip("]"), monkeypatch)


def test_sums_after_a_failure_and_later_points(open_store, sender):
    store = open_store()
    sender.send(store, 0, 6, die_before="series")
    sender.send(store, 10)
    sender.send(store, 0, 4)
    sender.send(store, 12)
    assert sender.counted(store) == (11, 5)
    recount(store)
    assert sender.counted(store) == (11, 11)
    for healer in (store, open_store()):
        recount(healer)
        assert sender.counted(store) == (11, 11)


def test_a_series_that_only_a_dead_commit_knew(open_store, sender):
    store = open_store()
    sender.send(store, 0, die_before="series")
    cursor = store.changes(None).cursor
    assert sender.there(store) == 0
    recount(store)
    assert sender.counted(store) == (3, 3)
    reading = store.read(RunRef(sender.run), Selection(["v"], after=cursor))
    assert (reading.complete, len(reading.series)) == (True, 1)


def test_a_series_is_visible_before_it_is_counted(open_store, sender):
    store = open_store()
    sender.send(store, 0, die_before="series")
    sender.send(store, 0)
    assert sender.there(store) == 3
    assert math.isnan(store.metrics(RunRef(sender.run))[0].last)
    assert store.run(RunRef(sender.run)).summary["v"].count == 0
    recount(store)
    assert sender.counted(store) == (3, 3)


def test_commits_that_finished_are_not_counted_again(open_store, sender):
    """Not by servers that do not know yet that they have; nor where death came after the sums."""
    store, other = open_store(), open_store()
    sender.send(store, 0)
    recount(other)
    sender.send(store, 3, die_before="arrival")
    recount(other)
    sender.send(store, 3)
    recount(other)
    assert sender.counted(store) == (6, 6)


def test_an_insert_that_comes_late_after_its_server_has_died(open_store, sender):
    """What was on its way is written after the points have come again, by a server that could not see them yet."""
    store = open_store()
    (points,) = sender.send(store, 0, die_before="points")
    sender.send(store, 0, die_before="process")
    (again,) = sender.send(store, 1, 3, die_before="points")
    points()
    sender.send(store, 2, 4, die_before="series")
    again()
    recount(store)
    assert sender.counted(store) == (6, 6)


def test_sums_that_come_late_after_they_were_counted(open_store, sender):
    store = open_store()
    (sums,) = sender.send(store, 0, die_before="series")
    recount(store)
    sums()
    assert sender.counted(store) == (3, 3)


def test_two_servers_count_a_dead_commit_at_once(open_store, sender, monkeypatch):
    store = open_store()
    sender.send(store, 0, die_before="series")
    both = threading.Barrier(2, timeout=300)
    counted = Recount._counted
    asked = threading.local()

    def together(recount, number, server):
        found = counted(recount, number, server)
        if not found and not hasattr(asked, "once"):
            asked.once = True
            both.wait()
        return found

    healers = [open_store(), open_store()]
    monkeypatch.setattr(Recount, "_counted", together)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(recount, healer) for healer in healers]:
            done.result()
    assert sender.counted(store) == (3, 3)


def test_a_token_whose_rows_clickhouse_has_lost(open_store, address, sender):
    """As when it dies between noting the one and keeping the others."""
    store = open_store()
    connection = Connection(address, address.database)
    sender.send(store, 0, die_before="series")
    try:
        number = connection.rows("SELECT max(number) FROM intent")[0][0]
        connection.insert("series", ("run", "series"), np.array([1, 1], np.uint64).tobytes(), token=str(number))
    finally:
        connection.close()
    recount(store)
    assert sender.counted(store) == (3, 3)


def test_the_same_points_by_two_living_servers(open_store, sender):
    """The second comes while the first has told what it will write, and has or has not written it."""
    store, other = open_store(), open_store()
    sender.send(store, 0, die_before="points", then=lambda: sender.send(other, 0))
    assert sender.counted(store) == (3, 3)
    sender.send(store, 3, die_before="series", then=lambda: sender.send(other, 3))
    assert sender.counted(store) == (6, 6)
    recount(store)
    assert sender.counted(store) == (6, 6)


def test_a_deleted_run_is_not_counted(open_store, address, sender, monkeypatch):
    store = open_store()
    sender.send(store, 0, die_before="series")
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "execute", lambda *_: None)  # its rows are still there
        store.delete(RunRef(sender.run))
    connection = Connection(address, address.database)
    try:
        recount(store)
        (run,) = connection.rows("SELECT run FROM deleted WHERE run_id = {run:String}", run=sender.run)[0]
        assert connection.rows(f"SELECT count() FROM series WHERE run = {run}") == [[0]]
        (last,) = connection.rows("SELECT max(number) FROM intent")[0]
        assert connection.rows(f"SELECT count() > 0 FROM intent WHERE over = {last}") == [[1]]
    finally:
        connection.close()


def test_a_commit_that_takes_too_long_gives_up(open_store, sender, monkeypatch):
    """Or it would write what others have counted already."""
    store = open_store()
    monkeypatch.setattr("tensormeter.server.store.clickhouse.commit.MOST_SECONDS", -1.0)
    payload = request_of_kinds(sender.run)
    with pytest.raises(StoreUnavailableError, match="takes longer"):
        store.append_metrics(decode_metrics(payload), payload=payload, batch_id=sender.run)
    monkeypatch.undo()
    store.append_metrics(decode_metrics(payload), payload=payload, batch_id=sender.run)
    recount(store)
    assert store.run(RunRef(sender.run)).summary["v"].count == 3


def test_events_after_a_failure(open_store, monkeypatch):
    store = open_store()
    insert = Connection.insert
    for failing in range(4):
        run = f"event-{failing}"
        event = Event("note", T0, {"image": {"data": b"\xff\xd8\xff", "content_type": "image/jpeg"}})
        payload = encode_events({"tensormeter.run.id": run}, [event])
        made = []

        def maybe(connection, table, columns, rows, *, token="", failing=failing, made=made):
            made.append(table)
            if len(made) > failing:
                raise StoreUnavailableError("dead")
            insert(connection, table, columns, rows, token=token)

        with monkeypatch.context() as patch:
            patch.setattr(Connection, "insert", maybe)
            with pytest.raises(StoreUnavailableError, match="dead"):
                store.append_events(decode_events(payload), payload=payload, batch_id=run)
        store.append_events(decode_events(payload), payload=payload, batch_id=run)
        (found,) = store.events(RunRef(run))
        assert store.media(RunRef(run), found.body["image"]["digest"])[1] == b"\xff\xd8\xff"


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
        numbers.extend(one.number for one in arrived)
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
    marked = b"INSERT INTO series "
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


def test_an_insert_whose_answer_is_lost_is_not_added_twice(clickhouse):
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
    one, two = open_store(), open_store()
    cursor = two.changes(None).cursor
    payload = request_of_kinds("shared")
    one.append_metrics(decode_metrics(payload), payload=payload)
    assert two.run(RunRef("shared")).points == 9
    (change,) = two.changes(cursor).changes
    assert (change.run.run_id, change.metrics) == ("shared", ["h", STEP_METRIC, "v"])
    reading = two.read(RunRef("shared"), Selection(["v"], after=cursor))
    assert (reading.complete, len(reading.series)) == (False, 1)
    two.delete(RunRef("shared"))
    assert one.append_metrics(decode_metrics(payload), payload=payload).rejected == 9


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
    # What died between points and sums is counted by a server some minutes later, and here at once.
    store = ClickHouseStore(parse_address(where, {}))
    try:
        recount(store)
    finally:
        store.close()
    run = servers[1].get("/api/v1/runs/killed")
    assert run["points"] == 2 * len(series["step"])
    assert run["summary"]["v"]["count"] == len(series["step"])
    assert servers[1].metrics(batch(10**6), batch_id="killed-0").status == 409
