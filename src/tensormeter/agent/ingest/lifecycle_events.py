"""Events about the life of a process: its start, its changed documents and its end."""

import time
from collections.abc import Mapping
from typing import Any, cast

from tensormeter.conventions.nesting import flatten
from tensormeter.conventions.semconv import RUN_CONFIG, RUN_END, RUN_START
from tensormeter.otlp.batch import Event, Value
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord, State

__all__ = ["documents_event", "end_event", "start_event"]


def start_event(ring: RingFile, metadata: Mapping[str, Any]) -> Event:
    """Return the event that starts a run, with the documents of its start."""
    names = ("config", "group", "job_type", "tags", "notes", "forked_from")
    return Event(
        RUN_START, ring.words[HeaderWord.CREATED], {name: metadata[name] for name in names if name in metadata}
    )


def documents_event(ring: RingFile) -> Event | None:
    """Return the event with all documents that have changed; None if there are none or they cannot be read."""
    latest = ring.documents()
    if latest is None:
        return None
    documents, changed_at = latest
    body: dict[str, Value] = {name: cast("Value", entries) for name, entries in documents.items()}
    if "summary" in documents:
        body["summary"] = flatten(documents["summary"])
    if "definitions" in documents:
        body["definitions"] = [{"name": name, **rule} for name, rule in documents["definitions"].items()]
    return Event(RUN_CONFIG, changed_at, body)


def end_event(ring: RingFile, metadata: Mapping[str, Any], dropped: Mapping[str, int]) -> Event:
    """Return the event that ends a run: its final state, and the cause with its traceback, if it has one."""
    if ring.state is not State.OPEN:
        body: dict[str, Value] = {"state": ring.state.name.lower(), "message": str(metadata.get("end", ""))}
        if metadata.get("traceback"):
            body["traceback"] = str(metadata["traceback"])
    elif ring.words[HeaderWord.SIGTERM]:
        body = {"state": "preempted", "message": "the process received SIGTERM and exited"}
    else:
        body = {"state": "crashed", "message": "the process ended without finishing the run"}
    return Event(RUN_END, time.time_ns(), {**body, "dropped": dict(dropped)})
