"""The promises of every store about runs, attempts and events, tested on each of them."""

import math

import numpy as np
import pytest

from support.stores import StoreClient
from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC, Event, Gauge
from tensormeter.server.store import NotFoundError, ProcessAttempt, RunChanges, RunRef, Selection
from tensormeter.server.store.models.event_query import EventQuery

SECOND = 10**9
T0 = 1_750_000_000 * SECOND


def test_a_run_from_start_to_end(client):
    body = {
        "config": {"lr": 0.1, "a.b": 1, "opt": {"name": "adam"}},
        "tags": ["x", "y"],
        "group": "g",
        "job_type": "eval",
        "notes": "n",
    }
    client.start(T0 + 5, **body)
    client.events(Event("tensormeter.run.start", T0 + 6, {}), process="q")
    client.append([T0 + 7], [1.0])
    run = client.store.run(client.ref)
    assert (run.state, run.created, run.started, run.ended, run.newest) == ("running", T0 + 5, T0 + 5, None, T0 + 7)
    assert (run.config, run.tags, run.group, run.notes, run.processes) == (body["config"], ["x", "y"], "g", "n", 2)
    assert run.job_type == "eval"
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


def test_a_run_has_its_earliest_reported_start_even_if_points_are_older(client):
    client.append([T0], [1.0])
    assert client.store.run(client.ref).started == T0
    client.start(T0 + 9)
    client.start(T0 + 5)
    client.append([T0 - 1], [2.0])
    run = client.store.run(client.ref)
    assert (run.created, run.started) == (T0 - 1, T0 + 5)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_a_rank_that_starts_late_does_not_undo_changes_of_the_config(client, order):
    start, change = "tensormeter.run.start", "tensormeter.run.config"
    given = {"lr": 0.1}
    sends = [
        (0, Event(start, T0, {"config": given})),
        (0, Event(change, T0 + 5, {"config": given | {"parameters": 7}})),
        (1, Event(start, T0 + 9, {"config": given})),
        (2, Event(start, T0 + 2, {"config": given})),
    ]
    for index in order:
        rank, event = sends[index]
        client.events(event, process=f"p{rank}", **{"tensormeter.rank": rank})
    assert client.store.run(client.ref).config == given | {"parameters": 7}
    client.events(Event(change, T0 + 10, {"config": {"lr": 0.2}}), process="p1", **{"tensormeter.rank": 1})
    assert client.store.run(client.ref).config == {"lr": 0.2}
    client.events(Event(start, T0 + 20, {"config": {"lr": 0.3}}), process="p3", **{"tensormeter.rank": 0})
    assert client.store.run(client.ref).config == {"lr": 0.3}


def test_the_config_of_another_rank_is_kept_if_the_first_has_none(client):
    client.events(Event("tensormeter.run.start", T0, {}), process="p0", **{"tensormeter.rank": 0})
    client.events(Event("tensormeter.run.start", T0 + 1, {"config": {"a": 1}}), process="p1", **{"tensormeter.rank": 1})
    assert client.store.run(client.ref).config == {"a": 1}


def test_a_table_has_config_values_as_they_were_sent(client):
    config = {"on": True, "off": False, "sum": 0.1 + 0.2, "one": 1, "text": "true", "none": None}
    dotted = {"wd.x": 1, "c.d": {"e.f": {"g": 2}}, "c": {"d": 3}, "h": {"i": 4}, "h.i": 5}
    client.start(T0, config=config | {"nested": config, "a.b": True, "opt": dotted, "": 6})
    values = {**config, **{f"nested.{key}": value for key, value in config.items()}, "a.b": True, "absent": None}
    values |= {
        "opt.wd.x": 1,
        "opt.c.d": {"e.f": {"g": 2}},
        "opt.h.i": 5,
        "opt.wd.y": None,
        "one.x": None,
    }
    columns = client.store.table(client.project, ["id", *(f"config.{key}" for key in values)]).columns
    index = columns["id"].index(client.run_id)
    stored = {key: columns[f"config.{key}"][index] for key in values}
    assert [*map(repr, stored.items())] == [*map(repr, values.items())]  # 1 == True


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
    client.start(T0 + 1, tags=["later"], group="sent", job_type="sent")
    run = client.store.run(client.ref)
    assert (run.name, run.tags, run.notes, run.group, run.job_type, run.archived) == (
        "mine",
        ["a"],
        "sent",
        "sent",
        "sent",
        True,
    )
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
    events = client.store.events(client.ref)
    assert [event.name for event in events] == ["b", "a.y", "a.x"]
    assert len({event.id for event in events}) == 3
    assert (events[2].step, events[2].body["text"], events[1].step) == (3, "日本\x00", None)
    assert events[1].body == {"n": 2**60 + 1, "nan": "NaN"}
    assert [event.name for event in client.store.events(client.ref, EventQuery(name="a.*", limit=1))] == ["a.y"]
    assert [event.name for event in client.store.events(client.ref, EventQuery(key="k"))] == ["a.x"]
    assert [event.name for event in client.store.events(client.ref, EventQuery(key=""))] == ["b"]
    assert [event.name for event in client.store.events(client.ref, EventQuery(start=T0 + 2, stop=T0 + 3))] == ["a.y"]
    digest = events[2].body["image"]["digest"]
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
    alerts = store.alerts(seen, 100)
    assert [(ref, event.body) for ref, event in alerts] == [(client.ref, "first"), (client.ref, "second")]
    assert [event.body for _, event in store.alerts(alerts[0][1].id, 100)] == ["second"]
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


@pytest.mark.parametrize("ranks", [1, 3])
def test_changes_of_more_than_a_thousand_metrics_are_not_named(client, ranks):
    def append(metrics, step):
        gauges = [Gauge(f"m{number:04}", np.array([step], np.uint64), np.array([1.0])) for number in range(metrics)]
        for rank in range(ranks):
            client.send(*gauges, process=f"rank-{rank}")

    append(1001, 1)
    cursor = client.store.changes(None).cursor
    append(1000, 2)
    (change,) = client.store.changes(cursor, [client.ref]).changes
    assert (len(change.metrics), change.many) == (1000, False)
    append(1001, 3)
    (change,) = client.store.changes(cursor, [client.ref]).changes
    assert (change.metrics, change.many) == ([], True)


@pytest.mark.parametrize("width", [20, 1500])
def test_metrics_with_new_values_that_are_not_finite(client, width):
    """The values of both wide and narrow commits, and in series with several points, are found."""

    def append(step, values):
        times = np.array([step, step + 1], np.uint64)
        client.send(*(Gauge(f"m{number:04}", times, np.array([1.0, value])) for number, value in enumerate(values)))

    def new(cursor, pattern="*", limit=10_000):
        return client.store.non_finite(client.ref, cursor, pattern, limit)

    start = client.store.changes(None).cursor
    values = np.ones(width)
    values[[3, 5, 7]] = [np.nan, np.inf, -np.inf]
    append(1, values)
    client.append([1, 2], [0x7FF0_0000_0000_0000, -1], name="integers")
    assert new(start) == ["m0003", "m0005", "m0007"]
    assert new(start, limit=2) == ["m0003", "m0005"]
    assert new(start, "m*[57]", limit=1) == ["m0005"]
    cursor = client.store.changes(None).cursor
    append(3, np.ones(width))
    assert new(cursor) == []
    append(5, np.full(width, np.nan))
    client.append([5], [np.nan], name="zzz")
    assert new(cursor) == [*(f"m{number:04}" for number in range(width)), "zzz"]
    assert new(cursor, "z*", limit=1) == ["zzz"]
    assert new("nonsense") == []
    with pytest.raises(NotFoundError):
        client.store.non_finite(RunRef("nothing"), cursor, "*", 1)


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
    """A process of a later attempt begins where its lowest step of a metric was logged."""

    def append(times, steps):
        gauges = [gauge(STEP_METRIC, times, steps), gauge("v", times, [float(step) for step in steps])]
        client.send(*gauges, process="q", **{"tensormeter.run.attempt": 2, "tensormeter.rank": 3})

    client.append([1, 2, 3], [0, 1, 2], name=STEP_METRIC)
    client.append([1, 2, 3], [5.0, 6.0, 7.0])
    cursor = client.store.changes(None).cursor
    assert client.store.read(client.ref, Selection(["v"])).attempts == {}
    append([11, 12], [2, 3])
    reading = client.store.read(client.ref, Selection(["v"], after=cursor))
    assert reading.complete  # what was shown may be shadowed now
    assert reading.attempts == {"p": ProcessAttempt(1, {}, 0, None), "q": ProcessAttempt(2, {"v": 2}, 11, 3)}
    append([13], [4])
    assert not client.store.read(client.ref, Selection(["v"], after=reading.cursor)).complete
    append([9], [1])
    reading = client.store.read(client.ref, Selection(["v"], after=reading.cursor))
    assert (reading.complete, reading.attempts["q"]) == (True, ProcessAttempt(2, {"v": 1}, 9, 3))
    assert [(p.process, p.attempt) for p in client.store.processes(client.ref)] == [("p", 1), ("q", 2)]
    assert {(m.process, m.attempt) for m in client.store.metrics(client.ref)} == {("p", 1), ("q", 2)}


def gauge(name, times, values):
    return Gauge(name, np.array(times, np.uint64), np.array(values))


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
    first, second = (StoreClient(client.store, client.run_id, f"{client.run_id} {i}") for i in range(2))
    first.append([1], [1.0])
    assert client.store.run(RunRef(client.run_id)).project == first.project
    second.append([1], [1.0])
    with pytest.raises(StoreError, match="is in 2 projects"):
        client.store.run(RunRef(client.run_id))
    listed = {summary.project: summary.runs for summary in client.store.projects()}
    assert (listed[first.project], listed[second.project]) == (1, 1)
    changes = client.store.changes("nonsense", [RunRef(client.run_id)]).changes
    assert {change.run for change in changes} == {first.ref, second.ref}
    assert client.store.table(first.project, ["project"]).columns["project"] == [first.project]
    assert client.store.runs([1 << 62, *client.store.table(first.project, []).runs])[0].project == first.project
