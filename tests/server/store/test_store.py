"""The promises of every store, tested on each of them."""

import math
import random
import secrets
import threading
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram, Summary
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.server.auth.project_scope import ProjectStore
from tensormeter.server.store import (
    BatchConflictError,
    NotFoundError,
    ProcessAttempt,
    RunChanges,
    RunRef,
    Selection,
    StoreUnavailableError,
    TooManyPointsError,
)
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.models.event_query import EventQuery
from tensormeter.server.store.sqlite.store import SqliteStore

SECOND = 10**9
T0 = 1_750_000_000 * SECOND


class Client:
    """A sender and reader of one run of a store."""

    def __init__(self, store, run, project="contract"):
        self.store, self.run_id, self.project = store, run, project
        self.ref = RunRef(run, project)

    def resource(self, process="p", **more):
        return {
            "service.name": self.project,
            "tensormeter.run.id": self.run_id,
            "service.instance.id": process,
        } | more

    def send(self, *series, process="p", batch_id=None, **more):
        payload = encode_metrics([Batch(self.resource(process, **more), series)])
        return self.store.append_metrics(decode_metrics(payload), payload=payload, batch_id=batch_id)

    def append(self, times, values, name="v", attributes=None, **more):
        column = np.asarray(values)
        gauge = Gauge(name, np.asarray(times).astype(np.uint64), column, attributes=attributes or {})
        return self.send(gauge, **more)

    def events(self, *events, process="p", batch_id=None, **more):
        payload = encode_events(self.resource(process, **more), events)
        return self.store.append_events(decode_events(payload), payload=payload, batch_id=batch_id)

    def start(self, time=T0, **body):
        return self.events(Event("tensormeter.run.start", time, body))

    def read(self, name="v", **query):
        found = self.store.read(self.ref, Selection([name], **query)).series
        assert len(found) <= 1
        return [(int(t), value) for s in found for t, value in zip(s.points.times, s.points.values(), strict=True)]

    def summary(self, name="v"):
        return self.store.run(self.ref).summary[name]


@pytest.fixture(scope="module", params=["sqlite", "clickhouse"])
def open_store(request, tmp_path_factory):
    """Opens the module's store, again after it was closed."""
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("store")
        return lambda: SqliteStore(folder, flush_points=1 << 60, flush_interval=3600)
    port = request.getfixturevalue("clickhouse")
    address = parse_address(f"clickhouse://127.0.0.1:{port}/contract", {})
    return lambda: ClickHouseStore(address, commit_interval=0)


@pytest.fixture(scope="module")
def held(open_store):
    stores = [open_store()]
    yield stores
    stores[0].close()


@pytest.fixture
def client(held, request):
    """A client of a new run."""
    name = request.node.name
    return Client(held[0], f"{name.partition('[')[0][:80]}-{zlib.crc32(name.encode())}")


def test_points_come_back_bit_for_bit(client):
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1.7976931348623157e308]
    client.append(range(1, 8), np.array(values))
    integers = np.array([2**53 + 1, -(2**63), 2**63 - 1])
    client.append([8, 9, 10], integers)
    points = client.store.read(client.ref, Selection(["v"])).series[0].points
    assert points.words.tobytes() == np.array(values).tobytes() + integers.tobytes()
    assert points.integers.tolist() == [False] * 7 + [True] * 3
    client.append([(1 << 63) - 2], [1.0], name="last of all times")
    assert client.read("last of all times") == [((1 << 63) - 2, 1.0)]
    assert client.append([0, 1 << 63], [1.0, 1.0], name="none").rejected == 2


def test_the_first_of_equal_times_wins(client):
    client.append([1, 2, 3], [1.0, 1.0, 1.0])
    client.append([3, 2, 4, 4], [2.0, 2.0, 2.0, 9.0])
    client.append([4, 5], [3, 3])
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 3)]
    assert client.read() == expected
    client.store.flush()
    client.append([1, 5], [7.0, 7.0])
    client.store.flush()
    assert client.read() == expected
    assert client.store.metrics(client.ref)[0].last == 3
    summary = client.summary()
    assert (summary.count, summary.min, summary.max, summary.last, summary.last_time) == (5, 1.0, 3.0, 3, 5)
    assert client.store.run(client.ref).points == 5


def test_a_batch_is_stored_once(client):
    assert not client.append([1], [1.0], batch_id=f"{client.run_id}/a").duplicate
    assert client.append([1], [1.0], batch_id=f"{client.run_id}/a").duplicate
    with pytest.raises(BatchConflictError, match="/a'"):
        client.append([1], [2.0], batch_id=f"{client.run_id}/a")
    assert client.read() == [(1, 1.0)]
    event = Event("n", T0, "text")
    assert not client.events(event, batch_id=f"{client.run_id}/e").duplicate
    assert client.events(event, batch_id=f"{client.run_id}/e").duplicate
    client.events(event)
    assert len(client.store.events(client.ref)) == 1


def test_batch_ids_of_projects_are_their_own(client):
    """With tokens of one project each, no client can make the batches of another duplicates, or have them refused."""
    name = f"{client.run_id}/a"
    ours, theirs = (Client(ProjectStore(client.store, one), client.run_id, one) for one in ("ours", "the\nirs"))
    for sender in (theirs, ours, client):
        assert not sender.append([1], [1.0], batch_id=name).duplicate
        assert sender.append([1], [1.0], batch_id=name).duplicate
        with pytest.raises(BatchConflictError, match=f"^batch '{name}' was stored"):
            sender.append([1], [2.0], batch_id=name)
        event = Event("n", T0, "text")
        assert not sender.events(event, batch_id=f"{name}e").duplicate
        assert sender.events(event, batch_id=f"{name}e").duplicate
        assert sender.read() == [(1, 1.0)]
        assert len(sender.store.events(sender.ref)) == 1


def test_one_batch_from_many_threads_at_once(client):
    receipts = []

    def send():
        receipts.append(client.append([1, 2], [1.0, 2.0], batch_id=f"{client.run_id}/same"))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert client.summary().count == 2


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.lists(
                st.tuples(st.integers(1, 30), st.one_of(st.integers(-5, 5), st.floats(-5, 5))), min_size=1, max_size=8
            ),
            st.sampled_from(["flush", "reopen"]),
        ),
        max_size=8,
    ),
)
def test_any_history_reads_like_a_dictionary(held, open_store, history):
    run = f"history-{secrets.token_hex(8)}"  # Hypothesis seeds `random`
    model = {}
    for action in history:
        client = Client(held[0], run)
        if action == "flush":
            client.store.flush()
        elif action == "reopen":
            held[0].close()
            held[0] = open_store()
        else:
            for kind in (int, float):
                rows = [(time, value) for time, value in action if type(value) is kind]
                if rows:
                    client.append(*zip(*rows, strict=True))
                for time, value in rows:
                    model.setdefault(time, value)
            found = client.read()
            assert found == sorted(model.items())
            assert [type(value) for _, value in found] == [type(model[time]) for time, _ in found]
            assert client.store.metrics(client.ref)[0].last == model[max(model)]
    if model:
        held[0].flush()
        summary = Client(held[0], run).summary()
        assert (summary.count, summary.min, summary.max) == (len(model), min(model.values()), max(model.values()))
        assert summary.mean == pytest.approx(sum(model.values()) / len(model), abs=1e-9)


def test_shuffled_and_split_batches_give_the_same_series(client):
    chaos = random.Random(5)
    order = list(range(1, 501))
    chaos.shuffle(order)
    while order:
        part, order = order[: chaos.randrange(1, 200)], order[chaos.randrange(1, 100) :]
        client.append(part, [time / 7 for time in part])
        if chaos.random() < 0.4:
            client.store.flush()
    client.append(range(1, 501), [time / 7 for time in range(1, 501)])
    assert client.read() == [(time, time / 7) for time in range(1, 501)]
    client.store.flush()
    assert client.store.run(client.ref).points == 500
    assert client.summary().mean == pytest.approx(sum(range(1, 501)) / 7 / 500)


def test_ranges_and_limits(client, monkeypatch):
    client.append(np.arange(1, 12), np.zeros(11))
    assert [time for time, _ in client.read(start=3, stop=5)] == [3, 4]
    assert client.read(start=-5, stop=0) == client.read(start=12, stop=1 << 70) == []
    with pytest.raises(TooManyPointsError, match="11 points here"):
        client.read(limit=10)
    monkeypatch.setattr("tensormeter.server.store.rules.limits.MAX_SERIES_PER_RUN", 2)
    assert client.append([1], [1.0], name="second").rejected == 0
    full = f"{client.run_id}/full"
    receipt = client.append([1, 2], [1.0, 1.0], name="third", batch_id=full)
    assert (receipt.rejected, "series" in receipt.message) == (2, True)
    assert client.append([1, 2], [1.0, 1.0], name="third", batch_id=full).rejected == 2
    assert client.append([2], [1.0], name="second").rejected == 0
    assert Client(client.store, f"{client.run_id}-other").append([2], [1.0], name="third").rejected == 0


def test_series_are_told_apart(client):
    client.append([1], [1.0], process="p0")
    client.append([1], [2.0], process="p1")
    client.append([1], [3.0], process="p1", attributes={"gpu": "0", "it's": "\x00\n日本"})
    client.append([1], [4.0], name="'; DROP TABLE points; --\\")
    found = client.store.read(client.ref, Selection(["v", "'; DROP TABLE points; --\\"])).series
    assert [(s.metric[0], s.process, dict(s.attributes), s.points.values()) for s in found] == [
        ("'", "p", {}, [4.0]),
        ("v", "p0", {}, [1.0]),
        ("v", "p1", {"gpu": "0", "it's": "\x00\n日本"}, [3.0]),
        ("v", "p1", {}, [2.0]),
    ]
    assert [s.process for s in client.store.read(client.ref, Selection(["v"], process="p0")).series] == ["p0"]
    metrics = client.store.metrics(client.ref)
    assert [(m.metric[0], m.process, m.points, m.last) for m in metrics] == [
        ("'", "p", 1, 4.0),
        ("v", "p0", 1, 1.0),
        ("v", "p1", 1, 3.0),
        ("v", "p1", 1, 2.0),
    ]
    assert [process.process for process in client.store.processes(client.ref)] == ["p0", "p1", "p"]


def test_distributions_come_back(client):
    times = np.array([1, 2], np.uint64)
    about = (times, np.array([3, 1], np.uint64), np.array([6.0, 1.0]), np.array([1.0, 1.0]), np.array([3.0, 1.0]))
    buckets = np.array([[1, 2], [1, 0]], np.uint64)
    client.send(Histogram("h", times, *about, np.array([1.0]), buckets))
    client.send(Summary("q", times, times, about[1], about[2], np.array([0.5]), np.array([[2.0], [1.0]])))
    reading = client.store.read(client.ref, Selection(["h", "q"], numeric=False))
    assert [(s.metric, s.kind.name, s.points.times.tolist()) for s in reading.series] == [
        ("h", "histogram", [1, 2]),
        ("q", "summary", [1, 2]),
    ]
    assert all(isinstance(blob, bytes) and blob for s in reading.series for blob in s.points.blobs)
    again = client.store.read(client.ref, Selection(["h"], numeric=False, start=2)).series[0].points
    assert again.blobs.tolist() == reading.series[0].points.blobs[1:].tolist()
    assert client.store.read(client.ref, Selection(["h"])).series == []
    assert client.store.run(client.ref).summary == {}
    assert client.store.run(client.ref).points == 4
    assert {(m.metric, m.last, m.last_time) for m in client.store.metrics(client.ref)} == {
        ("h", None, 2),
        ("q", None, 2),
    }
    client.send(Histogram("h", times, *about, np.array([1.0]), buckets))
    client.store.flush()
    assert client.store.run(client.ref).points == 4


def test_steps_of_last_values(client):
    client.append([17], [0.5], name="early")
    client.append(np.arange(1, 101), np.arange(100), name=STEP_METRIC)
    client.append([100], [0.5], name="late")
    client.append([101], [0.5], name="never")
    client.append([100], [0.5], name="other", process="q")
    expected = {STEP_METRIC: 99, "early": 16, "late": 99, "never": None, "other": None}
    for _ in range(2):
        assert {metric.metric: metric.last_step for metric in client.store.metrics(client.ref)} == expected
        assert {name: part.last_step for name, part in client.store.run(client.ref).summary.items()} == expected
        client.store.flush()


def test_summaries_of_odd_numbers(client):
    client.append([1, 2], [math.nan, math.nan], name="nan")
    client.append([1, 2, 3], [math.nan, 2.0, 4.0], name="some")
    client.append([4], [math.inf], name="some", process="q")
    client.append([1], [2**60 + 1], name="int")
    for _ in range(2):
        found = client.store.run(client.ref).summary
        nan = found["nan"]
        assert (nan.count, *map(math.isnan, (nan.last, nan.min, nan.max, nan.mean))) == (2, True, True, True, True)
        some = found["some"]
        assert (some.count, some.last, some.min, some.max, some.mean) == (4, math.inf, 2.0, math.inf, math.inf)
        assert found["int"].last == 2**60 + 1
        fields = ["name", "summary.some.max", "summary.none.last", "summary.int.last"]
        table = client.store.table(client.project, fields)
        row = [table.columns[field][table.columns["name"].index(client.run_id)] for field in fields]
        assert row == [client.run_id, math.inf, None, 2**60 + 1]
        client.store.flush()


def test_a_run_from_start_to_end(client):
    body = {"config": {"lr": 0.1, "a.b": 1, "opt": {"name": "adam"}}, "tags": ["x", "y"], "group": "g", "notes": "n"}
    client.start(T0 + 5, **body)
    client.events(Event("tensormeter.run.start", T0 + 6, {}), process="q")
    client.append([T0 + 7], [1.0])
    run = client.store.run(client.ref)
    assert (run.state, run.created, run.started, run.ended, run.newest) == ("running", T0 + 5, T0 + 5, None, T0 + 7)
    assert (run.config, run.tags, run.group, run.notes, run.processes) == (body["config"], ["x", "y"], "g", "n", 2)
    client.events(Event("tensormeter.run.end", T0 + 9, {"state": "finished", "dropped": {"full": 2}}))
    assert client.store.run(client.ref).ended is None
    client.events(
        Event("tensormeter.run.end", T0 + 8, {"state": "crashed", "dropped": {"full": 1, "x": 1}}), process="q"
    )
    run = client.store.run(client.ref)
    assert (run.state, run.attempt, run.ended) == ("crashed", 1, T0 + 9)
    assert client.store.losses(client.ref) == {"full": 3, "x": 1}
    assert run.lost == 4
    columns = client.store.table("contract", ["id", "lost", "newest"]).columns
    assert (client.ref.run_id, 4, T0 + 7) in set(
        zip(*(columns[name] for name in ("id", "lost", "newest")), strict=True)
    )
    assert [(p.process, p.state) for p in client.store.processes(client.ref)] == [("p", "finished"), ("q", "crashed")]
    client.events(Event("tensormeter.run.start", T0 + 20, {"config": {"lr": 0.2}}), process="r")
    run = client.store.run(client.ref)
    assert (run.state, run.attempt, run.ended, run.started, run.config) == ("running", 2, None, T0 + 5, {"lr": 0.2})
    assert run.tags == ["x", "y"]
    client.events(Event("tensormeter.run.config", T0 + 30, {"config": {"lr": 0.3, "n": 7}}), process="r")
    client.events(Event("tensormeter.run.config", T0 + 25, {"config": {"lr": 0.4}}), process="r")
    client.events(Event("tensormeter.run.config", T0 + 35, {"tags": ["z"]}), process="r")
    run = client.store.run(client.ref)
    assert (run.state, run.attempt, run.config, run.tags) == ("running", 2, {"lr": 0.3, "n": 7}, ["x", "y"])
    fields = ["id", "state", "attempt", "config.lr", "config.a.b", "processes", "tags"]
    table = client.store.table(client.project, fields)
    index = table.columns["id"].index(client.run_id)
    row = [table.columns[field][index] for field in fields]
    assert row == [client.run_id, "running", 2, 0.3, None, 3, ["x", "y"]]
    assert client.store.runs([table.runs[index]], [])[0].summary == {}


@pytest.mark.parametrize("field", ["config.key", "config.a'", "summary"])
def test_a_table_of_runs_ends_when_its_request_does(client, field):
    """A filter names many fields, and each of them is read of all runs before the first run is looked at."""
    client.append([T0], [1.0])
    client.events(Event("tensormeter.run.start", T0, {"config": {"key0": 1}}))
    fields = [f"{field}{number}" if field.startswith("config") else f"summary.m{number}.last" for number in range(9)]
    looks = []

    def check():
        looks.append(1)
        if len(looks) > 3:
            raise TimeoutError

    assert client.store.table(client.project, fields).runs
    with pytest.raises(TimeoutError):
        client.store.table(client.project, fields, check)
    assert client.run_id in client.store.table(client.project, ["id"]).columns["id"]


def test_what_users_say_stays(client):
    client.start(T0, tags=["sent"], notes="sent")
    client.store.update(client.ref, RunChanges(name="mine", tags=["a"], archived=True))
    client.start(T0 + 1, tags=["later"], group="sent")
    run = client.store.run(client.ref)
    assert (run.name, run.tags, run.notes, run.group, run.archived) == ("mine", ["a"], "sent", "sent", True)
    client.store.update(client.ref, RunChanges(tags=[], archived=False, notes=""))
    run = client.store.run(client.ref)
    assert (run.name, run.tags, run.notes, run.archived) == ("mine", [], "", False)


def test_stalled_until_it_starts_or_ends(client):
    client.start()
    client.store.mark_stalled(client.ref, stalled=True)
    assert client.store.run(client.ref).state == "stalled"
    client.store.mark_stalled(client.ref, stalled=False)
    assert client.store.run(client.ref).state == "running"
    client.store.mark_stalled(client.ref, stalled=True)
    client.start(T0 + 1)
    assert client.store.run(client.ref).state == "running"


def test_events_are_found_again(client):
    png = b"\x89PNG\r\n\x1a\n" + b"\x00\xff" * 100
    body = {"image": {"data": png, "content_type": "image/png"}, "text": "日本\x00"}
    attributes = {"tensormeter.key": "k", "tensormeter.step": 3}
    client.events(
        Event("a.x", T0 + 1, body, attributes),
        Event("a.y", T0 + 2, {"n": 2**60 + 1, "nan": math.nan}),
        Event("tensormeter.run.heartbeat", T0 + 9, {}),
        Event("b", T0 + 3, None, {"tensormeter.key": ""}),
    )
    found = client.store.events(client.ref)
    assert [event.name for event in found] == ["b", "a.y", "a.x"]
    assert len({event.id for event in found}) == 3
    assert (found[2].step, found[2].body["text"], found[1].step) == (3, "日本\x00", None)
    assert found[1].body == {"n": 2**60 + 1, "nan": "NaN"}
    assert [event.name for event in client.store.events(client.ref, EventQuery(name="a.*", limit=1))] == ["a.y"]
    assert [event.name for event in client.store.events(client.ref, EventQuery(key="k"))] == ["a.x"]
    assert [event.name for event in client.store.events(client.ref, EventQuery(key=""))] == ["b"]
    assert [event.name for event in client.store.events(client.ref, EventQuery(start=T0 + 2, stop=T0 + 3))] == ["a.y"]
    digest = found[2].body["image"]["digest"]
    assert client.store.media(client.ref, digest) == ("image/png", png)
    for unknown in ("0" * 64, "x", "é" * 64):
        with pytest.raises(NotFoundError, match="has no media"):
            client.store.media(client.ref, unknown)
    receipt = client.events(Event("n" * 2000, T0, None), Event("fine", 1 << 63, None))
    assert (receipt.rejected, "longer" in receipt.message, "2^63" in receipt.message) == (2, True, True)


def test_alerts_and_marks(client):
    client.append([1], [1.0])
    store = client.store
    seen = 0
    while page := store.alerts(seen, 100):
        seen = page[-1][1].id
    store.raise_alert(client.ref, Event("tensormeter.alert", T0, "first", {"k": 1}))
    store.raise_alert(client.ref, Event("tensormeter.alert", T0 + 1, "second"))
    store.raise_alert(client.ref, Event("tensormeter.alert", T0, "first", {"k": 1}))
    found = store.alerts(seen, 100)
    assert [(ref, event.body) for ref, event in found] == [(client.ref, "first"), (client.ref, "second")]
    assert [event.body for _, event in store.alerts(found[0][1].id, 100)] == ["second"]
    assert len(store.alerts(seen, 1)) == 1
    name = f"{client.run_id} it's"
    assert (store.mark(name), store.mark(name, 2**60 + 1), store.mark(name)) == (0, 2**60 + 1, 2**60 + 1)
    assert store.mark(name, 5) == store.mark(name) == 5


def test_what_is_new_since_a_cursor(client):
    client.append([1], [1.0])
    store = client.store
    cursor = store.changes(None).cursor
    assert store.changes(cursor, [client.ref]).changes[0].metrics == []
    reading = store.read(client.ref, Selection(["v"], after=cursor))
    assert (list(reading.series), reading.complete) == ([], False)
    client.append([2, 3], [2.0, 3.0])
    client.append([9], [1.0], name="w")
    (change,) = store.changes(cursor, [client.ref, RunRef("nothing")]).changes
    assert (change.run, change.metrics, change.events, change.state) == (client.ref, ["v", "w"], False, "running")
    reading = store.read(client.ref, Selection(["v"], after=cursor))
    assert (reading.complete, [s.points.times.tolist() for s in reading.series]) == (False, [[2, 3]])
    assert store.changes(reading.cursor, [client.ref]).changes[0].metrics == []
    client.append([4], [4.0])
    assert store.read(client.ref, Selection(["v"], after=reading.cursor)).series[0].points.values() == [4.0]
    cursor = store.changes(None).cursor
    client.events(Event("note", T0, None))
    assert [(c.run, c.metrics, c.events) for c in store.changes(cursor).changes] == [(client.ref, [], True)]
    for unknown in ("nonsense", "999999.0", "-1.0", "1.x", "9" * 50, ""):
        assert store.read(client.ref, Selection(["v"], after=unknown)).complete
        everything = [change for change in store.changes(unknown).changes if change.run == client.ref]
        assert [(change.metrics, change.events) for change in everything] == [([], True)]


@pytest.mark.parametrize(("numbered", "state"), [(True, "crashed"), (False, "finished")])
def test_a_rank_that_starts_after_another_has_crashed(client, numbered, state):
    """It is of the same attempt if their sender says so; without numbers it is taken for another attempt."""
    number = {"tensormeter.run.attempt": 1} if numbered else {}
    client.events(Event("tensormeter.run.start", T0, {}), process="p", **number)
    client.events(Event("tensormeter.run.end", T0 + 1, {"state": "crashed"}), process="p", **number)
    client.events(Event("tensormeter.run.start", T0 + 2, {}), process="q", **number)
    assert client.store.run(client.ref).state == ("crashed" if numbered else "running")
    client.events(Event("tensormeter.run.end", T0 + 3, {}), process="q", **number)
    run = client.store.run(client.ref)
    assert (run.state, run.attempt) == (state, 1 if numbered else 2)


def test_attempts(client):
    """A process of a later attempt begins where its lowest step was logged."""
    numbered = {"tensormeter.run.attempt": 2, "tensormeter.rank": 3}
    client.append([1, 2, 3], [0, 1, 2], name=STEP_METRIC)
    client.append([1, 2, 3], [5.0, 6.0, 7.0])
    cursor = client.store.changes(None).cursor
    assert client.store.read(client.ref, Selection(["v"])).attempts == {}
    client.append([11, 12], [2, 3], name=STEP_METRIC, process="q", **numbered)
    reading = client.store.read(client.ref, Selection(["v"], after=cursor))
    assert reading.complete  # what was shown may be shadowed now
    assert reading.attempts == {"p": ProcessAttempt(1, None, 0, None), "q": ProcessAttempt(2, 2, 11, 3)}
    client.append([13], [4], name=STEP_METRIC, process="q", **numbered)
    assert not client.store.read(client.ref, Selection(["v"], after=reading.cursor)).complete
    client.append([9], [1], name=STEP_METRIC, process="q", **numbered)
    reading = client.store.read(client.ref, Selection(["v"], after=reading.cursor))
    assert (reading.complete, reading.attempts["q"]) == (True, ProcessAttempt(2, 1, 9, 3))
    assert [(p.process, p.attempt) for p in client.store.processes(client.ref)] == [("p", 1), ("q", 2)]
    assert {(m.process, m.attempt) for m in client.store.metrics(client.ref)} == {("p", 1), ("q", 2)}


def test_deleted_until_it_starts_again(client):
    client.start()
    client.append([T0 + 1], [1.0])
    client.store.update(client.ref, RunChanges(name="mine"))
    client.store.delete(client.ref)
    for call in (client.store.run, client.store.delete, client.store.metrics, client.store.losses):
        with pytest.raises(NotFoundError, match="there is no run"):
            call(client.ref)
    assert client.run_id not in client.store.table(client.project, ["id"]).columns["id"]
    receipt = client.append([T0 + 2], [1.0])
    assert (receipt.rejected, "deleted" in receipt.message) == (1, True)
    assert client.events(Event("note", T0, None)).rejected == 1
    later = 4_000_000_000 * SECOND
    assert client.append([later], [1.0]).rejected == 1
    assert client.start(later).rejected == 0
    assert client.append([later + 1, later + 2], [5.0, 6.0]).rejected == 0
    client.store.flush()
    run = client.store.run(client.ref)
    assert (run.name, run.points, run.created) == (client.run_id, 2, later)
    assert client.read() == [(later + 1, 5.0), (later + 2, 6.0)]


def test_projects_and_names(client):
    one, two = (Client(client.store, client.run_id, f"{client.run_id} {i}") for i in range(2))
    one.append([1], [1.0])
    assert client.store.run(RunRef(client.run_id)).project == one.project
    two.append([1], [1.0])
    with pytest.raises(StoreError, match="is in 2 projects"):
        client.store.run(RunRef(client.run_id))
    listed = {summary.project: summary.runs for summary in client.store.projects()}
    assert (listed[one.project], listed[two.project]) == (1, 1)
    changes = client.store.changes("nonsense", [RunRef(client.run_id)]).changes
    assert {change.run for change in changes} == {one.ref, two.ref}
    assert client.store.table(one.project, ["project"]).columns["project"] == [one.project]
    assert client.store.runs([1 << 62, *client.store.table(one.project, []).runs])[0].project == one.project


def test_a_closed_store_says_so(open_store, held):
    held[0].close()
    store, held[0] = held[0], None
    try:
        store.close()
        with pytest.raises(StoreUnavailableError, match="closed"):
            store.projects()
        with pytest.raises(StoreUnavailableError, match="closed"):
            Client(store, "closed").append([1], [1.0])
    finally:
        held[0] = open_store()
