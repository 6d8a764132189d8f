"""Log lines, on both stores: pages, filters, search, arrival, retries, eviction, deletion, and files of older versions."""

import json
import random
from dataclasses import replace

import pytest

from support.stores import T0, StoreClient, append_events
from tensormeter.otlp.batch import Event, Scope
from tensormeter.server.store import NotFoundError, RunRef
from tensormeter.server.store.clickhouse import ClickHouseStore, parse_address
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.models.log_lines import LogQuery
from tensormeter.server.store.rules import log_scan
from tensormeter.server.store.rules.log_lines import LogLimit
from tensormeter.server.store.sqlite.retention import Retention, remove_old_lines
from tensormeter.server.store.sqlite.store import SqliteStore

WORDS = ("loss", "Epoch", "CUDA out of memory", "50%_done", "\\n", "héllo", "x")


def line(text, time=T0, stream=None, severity=0, **fields):
    attributes = ({} if stream is None else {"log.iostream": stream}) | fields.pop("attributes", {})
    return Event("", time, text, attributes, severity_number=severity, **fields)


def pages(client, query, step):
    """The texts of all pages in one direction, and the last page."""
    texts = []
    while True:
        page = client.store.logs(client.ref, query)
        found = [found.text for found in page.lines]
        assert len(found) <= query.limit
        texts = [*found, *texts] if step == "older" else [*texts, *found]
        position = getattr(page, step)
        if position is None:
            return texts, page
        query = replace(query, **{"before" if step == "older" else "after": position})


def test_a_line_keeps_all_fields_of_its_record(client):
    scope = Scope("lib.a", "2.1", attributes={"k": "v"})
    logged = line(
        "it broke", T0, severity=17, severity_text="ERROR", trace_id="5b8efff798038103d269b633813fc60c",
        span_id="eee19b7ec3c1b174", observed_time=T0 + 5, scope=scope, attributes={"code.line.number": 7},
    )  # fmt: skip
    client.events(logged, line("printed", T0 + 1, "stderr"), line({"a": [1, None]}, T0 + 2), process="p7")
    first, second, third = client.store.logs(client.ref, LogQuery()).lines
    assert (first.text, first.size, first.time, first.process, first.severity) == ("it broke", 8, T0, "p7", 17)
    assert first.attributes == {"code.line.number": 7}
    assert first.record == {
        "severity_text": "ERROR",
        "trace_id": "5b8efff798038103d269b633813fc60c",
        "span_id": "eee19b7ec3c1b174",
        "observed_time": T0 + 5,
        "scope": {"name": "lib.a", "version": "2.1", "attributes": {"k": "v"}},
    }
    assert (second.stream, second.attributes) == ("stderr", {})
    assert (third.text, third.record["json"]) == ('{"a":[1,null]}', True)
    assert client.store.logs(client.ref, LogQuery(max_text=3)).lines[0].text == "it "
    assert client.store.events(client.ref) == []


def test_pages_filters_and_searches_equal_a_list(client, monkeypatch):
    """A model: lines of three processes in any order, many at equal times, sent in parts and partly again."""
    monkeypatch.setattr(log_scan, "_FIRST_SLICE", 60)
    chance = random.Random(5)
    sent = []
    for number in range(150):
        text = f"{chance.choice(WORDS)} {number}"
        event = line(
            text, T0 + chance.randrange(40), chance.choice((None, "stdout", "stderr")), chance.choice((0, 9, 17))
        )
        sent.append((event, f"p{number % 3}"))
    for first in range(0, 150, 30):
        for process in ("p0", "p1", "p2"):
            part = [event for event, owner in sent[first : first + 30] if owner == process]
            client.events(*part, process=process)
            if first == 30:
                client.events(*part, process=process)  # a retry without batch ID
    complete, page = pages(client, LogQuery(limit=10_000), "older")
    assert sorted(complete) == sorted(event.body for event, _ in sent)
    assert (page.usage.lines >= 150, page.usage.evicted) == (True, 0)
    texts = {event.body: (event, process) for event, process in sent}
    assert [texts[text][0].time for text in complete] == sorted(event.time for event, _ in sent)

    def check(keep, **fields):
        expected = [text for text in complete if keep(*texts[text])]
        assert expected
        query = LogQuery(limit=40, **fields)
        assert pages(client, query, "older")[0] == expected
        assert pages(client, replace(query, after=(0, 0)), "newer")[0] == expected

    check(lambda _event, _process: True)
    check(lambda _, process: process in ("p0", "p2"), processes=["p2", "p0", "other"])
    check(lambda event, _: event.attributes.get("log.iostream") == "stdout", stream="stdout")
    check(lambda event, _: event.severity_number >= 10, severity=10)
    check(lambda event, _: T0 + 10 <= event.time < T0 + 20, start=T0 + 10, stop=T0 + 20)
    for search in ("cuda OUT", "50%_", "\\N", "héL"):
        check(lambda event, _, search=search: search.lower() in event.body.lower(), search=search)
    check(lambda event, process: process == "p1" and "loss" in event.body, processes=["p1"], search="LOSS")
    assert client.store.logs(client.ref, LogQuery(processes=[])).lines == []
    (middle,) = client.store.logs(client.ref, LogQuery(limit=1, before=(T0 + 20, 0))).lines
    page = client.store.logs(client.ref, LogQuery(limit=5, after=middle.position))
    assert page.older == page.lines[0].position
    back = client.store.logs(client.ref, LogQuery(limit=1, before=page.older)).lines
    assert back == [middle]


def test_a_search_stops_in_time_and_can_be_continued(client, monkeypatch):
    monkeypatch.setattr(log_scan, "_FIRST_SLICE", 10)
    monkeypatch.setattr(log_scan, "_GROWTH", 1)
    client.events(*(line("needle" if number % 50 == 7 else "hay", T0 + number) for number in range(200)))
    wanted = LogQuery(search="needle", limit=3, seconds=0)
    for direction, query in (("older", wanted), ("newer", replace(wanted, after=(0, 0)))):
        page = client.store.logs(client.ref, query)
        assert (page.stopped, len(page.lines) < 3) == (True, True)
        assert getattr(page, direction) is not None
        assert pages(client, query, direction)[0] == ["needle"] * 4


def test_lines_are_followed_in_order_of_arrival(client):
    other = StoreClient(client.store, f"{client.run_id}-other")
    other.events(line("elsewhere"))
    client.events(line("first", T0 + 100))
    page = client.store.logs(client.ref, LogQuery())
    assert [found.text for found in page.lines] == ["first"]
    changes = client.store.changes(None)
    client.events(line("late", T0), line("later", T0 + 200))
    other.events(line("elsewhere too"))
    client.events(line("latest", T0 + 300, severity=17))
    (change,) = client.store.changes(changes.cursor, [client.ref]).changes
    assert (change.logs, change.events) == (True, False)
    texts, cursor = [], page.cursor
    while True:
        part = client.store.logs(client.ref, LogQuery(since=cursor, limit=1))
        texts += [found.text for found in part.lines]
        cursor = part.cursor
        if not part.more:
            break
    assert texts == ["late", "later", "latest"]
    assert client.store.logs(client.ref, LogQuery(since=cursor)).lines == []
    filtered = client.store.logs(client.ref, LogQuery(since=page.cursor, severity=17))
    assert [found.text for found in filtered.lines] == ["latest"]
    unknown = client.store.logs(client.ref, LogQuery(since="what"))
    assert (unknown.reset, len(unknown.lines)) == (True, 4)
    client.append([1], [1.0])
    (change,) = client.store.changes(client.store.changes(None).cursor, [client.ref]).changes or [None]
    assert change is None or not change.logs


def test_lines_are_deleted_with_their_run(client):
    client.events(line("gone"))
    client.store.delete(client.ref)
    client.store.flush()
    with pytest.raises(NotFoundError):
        client.store.logs(client.ref, LogQuery())
    receipt = client.events(line("refused", T0 + 1))
    assert (receipt.rejected, "deleted" in receipt.message) == (1, True)
    client.start(T0 + 10**18)
    assert client.store.logs(client.ref, LogQuery()).lines == []


@pytest.mark.parametrize("kind", ["sqlite", "clickhouse"])
def test_the_oldest_lines_are_evicted_and_counted(kind, tmp_path, request):
    limit = LogLimit(320, 1 << 20)
    if kind == "sqlite":
        store = SqliteStore(tmp_path, retention=Retention(logs=limit), flush_interval=3600)
    else:
        address = parse_address(f"clickhouse://127.0.0.1:{request.getfixturevalue('clickhouse')}/evicted", {})
        store = ClickHouseStore(address, commit_interval=0, log_limit=limit)
    client = StoreClient(store, "r")
    for first in range(0, 1000, 100):
        client.events(*(line(f"{number}", T0 + number) for number in range(first, first + 100)))
    page = store.logs(client.ref, LogQuery(limit=1000))
    texts = [int(found.text) for found in page.lines]
    assert texts == list(range(texts[0], 1000))
    assert page.usage.lines == len(texts) <= 320
    assert page.usage.evicted == texts[0] > 600
    client.events(line("x" * (1 << 20), T0 + 5000))
    page = store.logs(client.ref, LogQuery())
    assert page.usage.evicted + page.usage.lines == 1001
    assert page.usage.size <= 1 << 20
    store.close()


def test_old_lines_are_removed_after_the_retention_age(open_store):
    store = open_store()
    for run in ("r", "kept"):
        client = StoreClient(store, run)
        client.start(tags=["keep"] if run == "kept" else [])
        client.events(line("old"), line("new", T0 + 10))
    with store._transaction():
        assert remove_old_lines(store._writer, T0 + 5, pytest.fail)
        assert not remove_old_lines(store._writer, T0 + 5, pytest.fail)
    for run, texts in (("r", ["new"]), ("kept", ["old", "new"])):
        page = store.logs(RunRef(run), LogQuery())
        assert [found.text for found in page.lines] == texts
        assert page.usage.lines == len(texts)


def test_a_page_of_lines_with_large_attributes_is_small(client):
    """10,000 lines with attributes of 4 MB would be an answer of 40 GB."""
    expected = [f"{number}" for number in range(10, 20)]
    for text in expected:
        client.events(line(text, T0 + int(text), attributes={"k": text * 1_000_000}))
    for query, step in ((LogQuery(limit=9), "older"), (LogQuery(limit=9, after=(0, 0)), "newer")):
        assert len(client.store.logs(client.ref, query).lines) == 4  # 8 of 8.4 million characters
        assert pages(client, query, step)[0] == expected
    cursor = client.store.logs(client.ref, LogQuery(limit=1)).cursor
    for text in expected:
        client.events(line(f"new {text}", T0, attributes={"k": text * 1_000_000}))
    arrived = client.store.logs(client.ref, LogQuery(limit=9, since=cursor))
    assert (len(arrived.lines) <= 5, arrived.more) == (True, True)


def test_a_large_request_is_stored_in_parts_that_a_retry_completes(client, monkeypatch):
    monkeypatch.setattr("tensormeter.server.store.rules.ingest_lines._MOST", 10)
    lines = [line(f"{number}", T0 + number) for number in range(95)]
    name = f"{client.run_id}/batch"
    client.events(*lines[:42])  # what was stored of a request before its server died
    assert not client.events(*lines, batch_id=name).duplicate
    assert client.events(*lines, batch_id=name).duplicate
    assert pages(client, LogQuery(limit=50), "older")[0] == [f"{number}" for number in range(95)]


def test_unnamed_events_of_older_versions_become_lines(tmp_path, query):
    store = SqliteStore(tmp_path / "store", flush_interval=3600)
    client = StoreClient(store, "r")
    client.start()
    store.close()
    body, record = json.dumps("an older line"), json.dumps({"severity_number": 17, "scope": {"name": "lib"}})
    insert = "INSERT INTO event (run, process, time, name, digest, body, attributes, record) SELECT run, id,"
    query(
        f"{insert} {T0 + 1}, '', x'01', '{body}', '{{\"log.iostream\":\"stderr\"}}', '{record}' FROM process",
        f"{insert} {T0 + 2}, '', x'02', '\"sent again\"', '{{}}', '{{\"severity_number\":9}}' FROM process",
        "DROP TABLE log", "DROP TABLE log_usage", "DROP TABLE result", "DROP TABLE first_step", "PRAGMA user_version = 8",
    )  # fmt: skip
    store = SqliteStore(tmp_path / "store", flush_interval=3600)
    append_events(store, client.resource(), line("sent again", T0 + 2, severity=9, scope=Scope("")))
    first, second = store.logs(client.ref, LogQuery()).lines
    assert (first.text, first.stream, first.severity) == ("an older line", "stderr", 17)
    assert (first.attributes, first.record) == ({}, {"scope": {"name": "lib"}})
    assert second.text == "sent again"
    assert [event.name for event in store.events(client.ref)] == ["tensormeter.run.start"]
    store.close()


def test_unnamed_events_of_older_clickhouse_tables_become_lines(clickhouse):
    address = parse_address(f"clickhouse://127.0.0.1:{clickhouse}/unnamed", {})
    store = ClickHouseStore(address, commit_interval=0)
    client = StoreClient(store, "r")
    client.start()
    connection = Connection(address, "unnamed")
    columns = "run, time, process, name, digest, id, body, attributes, record, precedence, received"
    for body, record in ((r'"a\\nb"', r"{\"severity_number\":17}"), (r"{\"a\":1}", "")):
        connection.execute(
            f"INSERT INTO event ({columns}) SELECT run, {T0 + 1}, process, '', SHA256('{body}'), id + 1, '{body}', '{{}}',"
            f" '{record}', precedence, received FROM event WHERE name != ''"
        )
    connection.execute("DROP TABLE log")
    connection.execute("TRUNCATE TABLE annotation")
    connection.execute("INSERT INTO annotation VALUES (0, 'schema', '5', 5)")
    store.close()
    for _ in range(2):
        store = ClickHouseStore(address, commit_interval=0)
        found = {
            (line.text, line.severity, line.record.get("json")) for line in store.logs(client.ref, LogQuery()).lines
        }
        assert found == {("a\nb", 17, None), ('{"a":1}', 0, True)}
        assert [event.name for event in store.events(client.ref)] == ["tensormeter.run.start"]
        store.close()
    connection.close()
