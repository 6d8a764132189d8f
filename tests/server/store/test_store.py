"""The promises of every store about points and distributions, tested on each of them."""

import math
import random
import secrets
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.stores import StoreClient
from tensormeter.otlp.batch import STEP_METRIC, Event, Histogram, Summary
from tensormeter.server.auth.project_scope import ProjectStore
from tensormeter.server.store import BatchConflictError, Selection, StoreUnavailableError, TooManyPointsError

SECOND = 10**9
T0 = 1_750_000_000 * SECOND


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
    ours, theirs = (
        StoreClient(ProjectStore(client.store, project), client.run_id, project) for project in ("ours", "the\nirs")
    )
    for sender in (theirs, ours, client):
        assert not sender.append([1], [1.0], batch_id=name).duplicate
        assert sender.append([1], [1.0], batch_id=name).duplicate
        with pytest.raises(BatchConflictError, match=f"^batch '{name}' was already stored"):
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
    )
)
def test_any_history_reads_like_a_dictionary(each_store, open_each_store, history):
    run = f"history-{secrets.token_hex(8)}"  # Hypothesis seeds `random`
    model = {}
    for action in history:
        client = StoreClient(each_store[0], run)
        if action == "flush":
            client.store.flush()
        elif action == "reopen":
            each_store[0].close()
            each_store[0] = open_each_store()
        else:
            for kind in (int, float):
                rows = [(time, value) for time, value in action if type(value) is kind]
                if rows:
                    client.append(*zip(*rows, strict=True))
                for time, value in rows:
                    model.setdefault(time, value)
            points = client.read()
            assert points == sorted(model.items())
            assert [type(value) for _, value in points] == [type(model[time]) for time, _ in points]
            assert client.store.metrics(client.ref)[0].last == model[max(model)]
    if model:
        each_store[0].flush()
        summary = StoreClient(each_store[0], run).summary()
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
    with pytest.raises(TooManyPointsError, match="11 points, but"):
        client.read(limit=10)
    monkeypatch.setattr("tensormeter.server.store.rules.limits.MAX_SERIES_PER_RUN", 2)
    assert client.append([1], [1.0], name="second").rejected == 0
    full = f"{client.run_id}/full"
    receipt = client.append([1, 2], [1.0, 1.0], name="third", batch_id=full)
    assert (receipt.rejected, "series" in receipt.message) == (2, True)
    assert client.append([1, 2], [1.0, 1.0], name="third", batch_id=full).rejected == 2
    assert client.append([2], [1.0], name="second").rejected == 0
    assert StoreClient(client.store, f"{client.run_id}-other").append([2], [1.0], name="third").rejected == 0


def test_series_are_told_apart(client):
    client.append([1], [1.0], process="p0")
    client.append([1], [2.0], process="p1")
    client.append([1], [3.0], process="p1", attributes={"gpu": "0", "it's": "\x00\n日本"})
    client.append([1], [4.0], name="'; DROP TABLE points; --\\")
    lines = client.store.read(client.ref, Selection(["v", "'; DROP TABLE points; --\\"])).series
    assert [(s.metric[0], s.process, dict(s.attributes), s.points.values()) for s in lines] == [
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
        summaries = client.store.run(client.ref).summary
        nan = summaries["nan"]
        assert (nan.count, *map(math.isnan, (nan.last, nan.min, nan.max, nan.mean))) == (2, True, True, True, True)
        some = summaries["some"]
        assert (some.count, some.last, some.min, some.max, some.mean) == (4, math.inf, 2.0, math.inf, math.inf)
        assert summaries["int"].last == 2**60 + 1
        fields = ["name", "summary.some.max", "summary.none.last", "summary.int.last"]
        table = client.store.table(client.project, fields)
        row = [table.columns[field][table.columns["name"].index(client.run_id)] for field in fields]
        assert row == [client.run_id, math.inf, None, 2**60 + 1]
        client.store.flush()


def test_a_closed_store_says_so(open_each_store, each_store):
    each_store[0].close()
    store, each_store[0] = each_store[0], None
    try:
        store.close()
        with pytest.raises(StoreUnavailableError, match="closed"):
            store.projects()
        with pytest.raises(StoreUnavailableError, match="closed"):
            StoreClient(store, "closed").append([1], [1.0])
    finally:
        each_store[0] = open_each_store()
