"""Streams that are open: data of their runs wakes them, and its senders learn of them."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from support.coroutines import run_coroutine
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.server.api import stream as stream_module
from tensormeter.server.api.stream import Shutdown, StreamApi
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.store import RunRef
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.server.viewers import LIVE_HEADER, Viewer, Viewers

T0 = 1_750_000_000_000_000_000


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def resource(run="r", project="p", process="a"):
    return {"service.name": project, "tensormeter.run.id": run, "service.instance.id": process}


def test_only_the_viewers_of_a_run_are_woken():
    async def check():
        viewers = Viewers()
        one, other = Viewer(asyncio.get_running_loop()), Viewer(asyncio.get_running_loop())
        assert viewers.stored([resource()]) is None
        with viewers.watching(one, [RunRef("r", "p"), RunRef("s")]), viewers.watching(other, [RunRef("r", "q")]):
            assert viewers.stored([resource(project="another")]) is None
            assert viewers.stored([resource(run="another")]) is None
            assert viewers.stored([{"tensormeter.run.id": "not/valid"}]) is None
            assert await asyncio.to_thread(viewers.stored, [resource()]) == 0.1
            await one.wait(0, 3600)
            assert viewers.stored([resource(run="s", project="any")]) == 0.1
            await one.wait(0, 3600)
            assert not other._stored.is_set()
        assert viewers.stored([resource()]) is None
        assert not viewers._viewers

    run_coroutine(check)


def test_many_senders_get_a_longer_interval():
    async def check():
        clock = Clock()
        viewers = Viewers(clock)
        with viewers.watching(Viewer(asyncio.get_running_loop()), [RunRef("r", "p")]):
            for rank in range(512):
                interval = viewers.stored([resource(process=str(rank))])
            assert interval == pytest.approx(512 / 50)
            clock.now += 60
            assert viewers.stored([resource()]) == 0.1

    run_coroutine(check)


def test_senders_learn_that_somebody_watches(server, make):
    def header():
        return server.metrics(make.rows("watched", [(T0, 0, {"loss": 1.0})])).headers.get(LIVE_HEADER)

    assert header() is None
    stream = server.http.request("GET", f"{server.url}/api/v1/stream?runs=watched", preload_content=False)
    pieces = stream.stream(1)
    next(pieces)
    assert header() == "0.100"
    assert LIVE_HEADER not in server.metrics(make.rows("another", [(T0, 0, {"loss": 1.0})])).headers
    stream.close()


def test_new_data_ends_the_wait_of_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "_POLL", 3600)
    store = SqliteStore(tmp_path / "store")
    viewers = Viewers()
    api = StreamApi(Stores(store), ApiThreads(lambda: None), Shutdown(), viewers)
    everyone = SimpleNamespace(valid=lambda: True)
    ref = RunRef("r", "p")

    async def check():
        viewer = Viewer(asyncio.get_running_loop())
        events = api._events(store, everyone, [ref], None, api._places.take("client", None), viewer)
        with viewers.watching(viewer, [ref]):
            assert await anext(events) == b"retry: 2000\n\n"
            assert b"event: cursor" in await anext(events)
            times, values = np.array([T0], np.uint64), np.array([1.0])
            await asyncio.to_thread(
                store.append_metrics, [Batch(resource(), [Gauge("loss", times, values)])], payload=b"1"
            )
            viewers.stored([resource()])
            assert b'"metrics":["loss"]' in await anext(events)
        await events.aclose()

    run_coroutine(check)
    store.close()
