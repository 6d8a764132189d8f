"""Damage at rest: bits, holes and cuts in what a store keeps. Nothing wrong is served, and nothing is missing without a word."""

import json
import os
import random
import shutil
import sqlite3
from contextlib import closing

import anyio
import numpy as np
import pytest

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram
from tensormeter.otlp.encode import encode_events, encode_metrics
from tensormeter.server.app import create_app
from tensormeter.server.config import ServerConfig
from tensormeter.server.query import points as points_query
from tensormeter.server.store import RunRef, chunks
from tensormeter.server.store.sqlite import SqliteStore

T0 = 1_750_000_000_000_000_000
N = 7000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
MANY = bool(os.environ.get("TENSORMETER_TEST_KILLS"))
JOURNAL = "in-journal"
"""The run whose newest points are in the journal only."""


def resource(run, process="p0"):
    return {"service.name": "demo", "service.instance.id": process, "tensormeter.run.id": run, "host.name": "a-host"}


def send_metrics(store, run, *series, process="p0"):
    batch = Batch(resource(run, process), series)
    store.append_metrics(
        [batch], payload=encode_metrics([batch]), batch_id=f"{run}-{process}-{series[-1].name}-{series[0].times[0]}"
    )


def send_events(store, run, *events):
    store.append_events([(resource(run), events)], payload=encode_events(resource(run), events))


def times(first, count):
    return np.arange(T0 + first, T0 + first + count).astype(np.uint64)


@pytest.fixture(scope="module")
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_POINTS", 2048)
        patch.setattr(points_query, "WHOLE_POINTS", 5000)
        yield


@pytest.fixture(scope="module")
def image(tmp_path_factory, small_chunks):
    """A store file with something of everything, some of it in the journal only."""
    folder = tmp_path_factory.mktemp("image")
    store = SqliteStore(folder / "store", fold_interval=3600)
    noise = np.random.default_rng(1)
    for run in ("long", "other"):
        values = noise.random(N)
        values[17] = np.nan
        steps = Gauge(STEP_METRIC, times(0, N), np.arange(N))
        send_metrics(
            store, run, steps, Gauge("loss", times(0, N), values), Gauge("epoch", times(0, N), np.arange(N) // 100)
        )
        send_metrics(store, run, Gauge("loss", times(N, 90), noise.random(90)), process="p1")
        start = Event(
            "tensormeter.run.start", T0, {"config": {"lr": 0.5, "name": "adam"}, "tags": ["base"], "notes": "text"}
        )
        picture = Event(
            "tensormeter.media", T0 + 5, {"x": {"data": PNG, "content_type": "image/png"}}, {"tensormeter.key": "x"}
        )
        table = Event("tensormeter.table", T0 + 6, {"columns": ["a"], "rows": [[1], [2.5], ["x"]]})
        send_events(store, run, start, picture, table, Event("tensormeter.run.end", T0 + N, {"state": "finished"}))
    buckets = noise.integers(0, 100, (40, 4)).astype(np.uint64)
    counts = buckets.sum(axis=1).astype(np.uint64)
    when, ones = times(0, 40), np.ones(40)
    histogram = Histogram("weights", when, when, counts, ones, ones, ones, np.array([0.1, 0.2, 0.3]), buckets)
    send_metrics(store, "other", histogram)
    send_metrics(store, JOURNAL, Gauge("loss", times(0, 50), noise.random(50)))
    store.fold()
    for first in (50, 60, 70):
        send_metrics(store, JOURNAL, Gauge("loss", times(first, 10), noise.random(10)))
    send_events(
        store, JOURNAL, Event("tensormeter.run.start", T0), Event("tensormeter.run.end", T0 + 99, {"state": "finished"})
    )
    store._folder.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    shutil.copy(folder / "store" / "tensormeter.db", folder / "image.db")
    store.close()
    return folder / "image.db"


def ask(app, path, body=None):
    """(status, document) of a request that never leaves this process."""
    where, _, query = path.partition("?")
    sent = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "scheme": "http",
        "path": where,
        "raw_path": where.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def call():
        first = [
            {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode(), "more_body": False}
        ]

        async def receive():
            if not first:
                await anyio.sleep_forever()
            return first.pop()

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    anyio.run(call)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(content) if content[:1] == b"{" else content


def answers(store, digest):
    """What the API says, by request."""
    app = create_app(store, ServerConfig())
    found = {"runs": ask(app, "/api/v1/runs?sort=id")}
    runs = ["long", "other", JOURNAL]
    for x in ("step", "time"):
        for most in (12, 2000):
            query = {"runs": runs, "metrics": ["loss", "epoch"], "x": x, "max_points": most}
            found[f"query {x} {most}"] = ask(app, "/api/v1/query", query)
    for run in runs:
        for what in (
            "",
            "/metrics",
            "/events",
            "/series?metric=loss&x=time",
            "/ranks?metric=loss",
            "/histograms?metric=weights",
        ):
            found[run + what] = ask(app, f"/api/v1/runs/{run}{what}")
        found[f"{run} media"] = ask(app, f"/api/v1/runs/{run}/media/{digest}")
    return found


def differences(found, expected, problem):
    """What is neither right, nor an error, nor said to be missing."""
    wrong = []
    is_journal_damaged = "journal row" in (problem or "")
    for request, (status, document) in found.items():
        known_status, known = expected[request]
        if (status, document) == (known_status, known) or status >= 500 or (status == 404 and known_status == 200):
            continue
        if known_status != 200 or status != 200:
            wrong.append((request, status, document))
            continue
        if is_journal_damaged and request.startswith(JOURNAL):
            continue  # its points are said to be missing; that none is wrong is looked at in another request
        said = document.get("damaged")
        parts = without_journal if is_journal_damaged else dict
        ours, theirs = parts(document), parts(known)
        lists = [name for name in ("series", "runs") if name in known]
        for name in lists:
            left = [entry for entry in ours.pop(name) if entry not in theirs[name]]
            if left or (len(document[name]) < len(known[name]) and not said and not is_journal_damaged):
                wrong.append((request, name, left, document[name]))
            theirs.pop(name)
        for name in ("damaged", "cursor", "total"):
            ours.pop(name, None)
            theirs.pop(name, None)
        if ours != theirs:
            wrong.append((request, ours, theirs))
    return wrong


def without_journal(document):
    """Without the run that is said to lack points."""
    return {
        name: [entry for entry in value if JOURNAL not in (entry.get("run"), entry.get("id"))]
        if name in ("series", "runs")
        else value
        for name, value in document.items()
    }


def damage(content, instants):
    """Bits, a hole or a cut."""
    content = bytearray(content)
    match instants.randrange(3):
        case 0:
            for _ in range(instants.randrange(1, 4)):
                content[instants.randrange(len(content))] ^= 1 << instants.randrange(8)
        case 1:
            first = instants.randrange(len(content))
            length = min(instants.randrange(1, 200), len(content) - first)
            content[first : first + length] = bytes(length)
        case 2:
            del content[instants.randrange(len(content)) :]
    return bytes(content)


def damage_a_row(file, instants):
    """Change one value of the store in the way of a disk; says which."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.text_factory = bytes
        tables = {
            table: [row[1].decode() for row in database.execute(f"PRAGMA table_info({table})")]
            for table in ("chunk", "sample", "journal", "media", "event", "run", "process", "series", "summary")
        }
        table = instants.choice([*tables])
        column = instants.choice(tables[table])
        keys = "run, metric" if table == "summary" else "rowid"
        *key, value = instants.choice(database.execute(f"SELECT {keys}, {column} FROM {table}").fetchall())
        if value is None or value in (b"", 0):
            return None
        if isinstance(value, bytes):
            kind = database.execute(f"SELECT DISTINCT typeof({column}) FROM {table} LIMIT 1").fetchone()[0]
            new = damage(value, instants)
            expression = "CAST(? AS TEXT)" if kind == b"text" else "?"
        elif isinstance(value, int):
            new, expression = value ^ 1 << instants.randrange(62), "?"
        else:
            (word,) = np.array([value]).view(np.int64)
            new, expression = float(np.array([word ^ 1 << instants.randrange(63)]).view(np.float64)[0]), "?"
        if new == value or new != new:
            return None
        where = " AND ".join(f"{name} = ?" for name in keys.split(", "))
        try:
            database.execute("PRAGMA foreign_keys = OFF")
            database.execute(f"UPDATE {table} SET {column} = {expression} WHERE {where}", [new, *key])
        except sqlite3.IntegrityError:
            return None
        return f"{table}.{column} of {key}: {value[:40] if isinstance(value, bytes) else value!r}"


@pytest.mark.parametrize("kind", ["rows", "pages"])
def test_damage_at_rest_is_an_error_or_changes_no_answer(tmp_path, image, small_chunks, kind):
    """`make chaos` tries hundreds; this one some dozens."""
    seed = random.SystemRandom().randrange(1 << 32) if MANY else 3
    print(f"seed {seed}")
    instants = random.Random(seed)
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(image, whole / "tensormeter.db")
    store = SqliteStore(whole, fold_interval=3600)
    digest = store.events(RunRef("long"), name="tensormeter.media")[0].body["x"]["digest"]
    expected = answers(store, digest)
    assert {status for status, _ in expected.values()} == {200, 404}  # one run has no picture
    store.close()
    tried = 0
    for number in range(4000):
        if tried == (300 if MANY else 25):
            break
        folder = tmp_path / f"damaged-{number}"
        folder.mkdir()
        file = folder / "tensormeter.db"
        shutil.copy(image, file)
        what = "pages"
        if kind == "rows":
            what = damage_a_row(file, instants)
            if what is None:
                continue
        else:
            file.write_bytes(damage(image.read_bytes(), instants))
        tried += 1
        try:
            store = SqliteStore(folder, fold_interval=3600)
        except StoreError:
            continue
        try:
            store._start_check.wait()
            found = answers(store, digest)
            wrong = differences(found, expected, store.problem())
            assert not wrong, f"{number}: {what}: {store.problem()}: {str(wrong[0])[:1500]}"
        finally:
            store.close()
        shutil.rmtree(folder)
