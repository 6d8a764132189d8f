"""A store with all kinds of rows, to be damaged, and the questions that tests ask of it."""

import json
import shutil

import anyio
import numpy as np

from support.coroutines import run_coroutine
from support.processes import run_python
from support.stores import append_batches, append_events
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram
from tensormeter.server.store.sqlite.store import SqliteStore

T0 = 1_750_000_000_000_000_000
N = 7000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
JOURNAL = "in-journal"
"""The run whose newest points are in the journal only."""
SERIES = (
    "(SELECT series.id FROM series JOIN process p ON p.id = series.process JOIN run r ON r.id = p.run"
    " WHERE r.run_id = '{}' AND metric = '{}' AND p.process = 'p0')"
)


def resource(run, process="p0"):
    return {"service.name": "demo", "service.instance.id": process, "tensormeter.run.id": run, "host.name": "a-host"}


def times(first, count):
    return np.arange(T0 + first, T0 + first + count).astype(np.uint64)


def send_metrics(store, run, *series, process="p0"):
    batch = Batch(resource(run, process), series)
    append_batches(store, batch, batch_id=f"{run}-{process}-{series[-1].name}-{series[0].times[0]}")


def send_events(store, run, *events):
    append_events(store, resource(run), *events)


def make_image(folder):
    """Write a store file with something of everything, some of it in the journal only. Returns its path."""
    store = SqliteStore(folder / "store", flush_interval=3600)
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
        printed = [Event("", T0 + number, f"line {number}", {"log.iostream": "stdout"}) for number in range(40)]
        send_events(store, run, *printed, Event("", T0 + 40, {"a": 1}, {"k": 2.5}, severity_number=17))
    buckets = noise.integers(0, 100, (40, 4)).astype(np.uint64)
    counts = buckets.sum(axis=1).astype(np.uint64)
    when, ones = times(0, 40), np.ones(40)
    histogram = Histogram("weights", when, when, counts, ones, ones, ones, np.array([0.1, 0.2, 0.3]), buckets)
    send_metrics(store, "other", histogram)
    send_metrics(store, JOURNAL, Gauge("loss", times(0, 50), noise.random(50)))
    store.flush()
    for first in (50, 60, 70):
        send_metrics(store, JOURNAL, Gauge("loss", times(first, 10), noise.random(10)))
    send_events(
        store, JOURNAL, Event("tensormeter.run.start", T0), Event("tensormeter.run.end", T0 + 99, {"state": "finished"})
    )
    store._flusher.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
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

    run_coroutine(call)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(content) if content[:1] == b"{" else content


def check(folder, *options):
    return run_python("-m", "tensormeter", "check", "--data", folder, *options)
