"""Items that take long, from `log_artifact` to the spool, with and without the background thread."""

import gzip
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.spools import take_requests
from support.waiting import wait_for
from tensormeter.agent.background.items import Item
from tensormeter.agent.background.worker import Background, Result
from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.errors import SpoolError
from tensormeter.otlp.decode import decode_events
from tensormeter.record.media.artifact import Artifact
from tensormeter.record.media.item import EventContent
from tensormeter.ring.file import RingFile, media_directory
from tensormeter.settings import Settings


def events_in(spool: Any) -> dict[str, Any]:
    """Bodies of the events in the spool, which is emptied, by event name."""
    requests = [request for request in take_requests(spool) if request.signal == "logs"]
    bodies = [decode_events(gzip.decompress(request.body)) for request in requests]
    return {event.name: event.body for decoded in bodies for _, events in decoded for event in events}


def test_without_a_background_thread_no_file_is_read(source: Any, spool: Any, open_drain: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not to be read")
    source.recorder.artifact(Artifact(secret, None, "model", "best"), None)
    source.recorder.request_code(
        EventContent("tensormeter.run.code", {"script": str(secret), "folders": [], "paths": []})
    )
    open_drain(source).advance(flush=True)
    events = events_in(spool)
    artifact, code = events["tensormeter.artifact"], events["tensormeter.run.code"]
    assert (artifact["path"], artifact["aliases"]) == (str(secret), ["best"])
    assert (artifact["digest"], artifact["size"], artifact["problem"]) == (None, None, "no agent was running")
    assert (code["source"], code["git"], code["problem"]) == (None, None, "no agent was running")
    assert not list(media_directory(source.path).iterdir())


def test_items_survive_an_agent_and_a_spool_that_refuses_them(source: Any, spool: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    source.recorder.artifact(Artifact(str(path), "model", "model", ()), 3)

    def drain(background: Background) -> RingDrainer:
        settings = Settings(schedule_delay=3600, self_metrics_interval=0)
        ring = RingFile.open(source.path)
        return RingDrainer(ring, spool, ("a",), settings, background=background)

    killed = Background()
    drain(killed).advance(flush=True)
    (file,) = media_directory(source.path).iterdir()
    assert (file.suffix, killed.is_busy) == (".slow", True)
    killed.stop()

    background = Background()
    drainer = drain(background)
    wait_for(lambda: background.has_results, "the artifact is described")
    assert not background.is_announced(drainer.ring.process)

    def refuse(item: Item, body: dict[str, Any]) -> None:
        raise SpoolError("full")

    with pytest.raises(SpoolError):
        background.deliver(refuse)
    bodies: list[dict[str, Any]] = []
    background.deliver(lambda item, body: bodies.append(body))
    assert [(body["size"], body["problem"]) for body in bodies] == [(7, "")]
    assert bodies[0]["digest"].startswith("sha256:")
    assert not background.is_busy
    assert not list(media_directory(source.path).iterdir())
    background.stop()


def test_sizes_do_not_wait_for_digests_and_giving_up_says_so(source: Any, tmp_path: Path) -> None:
    def item(name: str, size: int) -> Item:
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
        body = {"name": name, "type": "model", "aliases": [], "path": str(tmp_path / name)}
        header = {"event": "tensormeter.artifact", "key": name, "step": None, "time": 1, "body": body}
        return Item(tmp_path / f"{name}.slow", "process", {}, header)

    background = Background(rate=float(10 << 20))  # a digest takes minutes
    bodies: dict[str, list[dict[str, Any]]] = {}

    def put(item: Item, body: dict[str, Any]) -> None:
        bodies.setdefault(body["name"], []).append(body)

    def is_put(name: str) -> Callable[[], bool]:
        def check() -> bool:
            background.deliver(put)
            return name in bodies

        return check

    for name in ("first", "second"):
        submitted = item(name, 1 << 30)
        background.submit(submitted)
        background.submit(submitted)  # again, which changes nothing
        wait_for(is_put(name), "the size of an artifact", 60)
    assert background.is_announced("process")
    background.give_up("the end")
    background.deliver(put)
    expected = [(1 << 30, None, ""), (1 << 30, None, "the end")]
    for name in ("first", "second"):
        assert [(body["size"], body["digest"], body["problem"]) for body in bodies[name]] == expected
    assert not background.is_busy


def test_results_arrive_while_others_are_looked_through(tmp_path: Path) -> None:
    header = {"event": "tensormeter.artifact", "key": "a", "step": None, "time": 1, "body": {"name": "a"}}
    item = Item(tmp_path / "a.slow", "process", {}, header)
    background = Background()
    background._results.extend([Result(item, {}, False)] * 1000)
    is_over = threading.Event()

    def add() -> None:
        while not is_over.is_set():
            background._results.append(Result(item, {}, False))
            background._results.popleft()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(100):
            background.announce("process")  # raised an error if a result arrived meanwhile
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert len(background._results) == 1000
    background.stop()
