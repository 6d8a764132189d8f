"""Items whose events take the agent long to make: descriptions of the code, and artifacts."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.background.code import code_of
from tensormeter.conventions.semconv import ARTIFACT_EVENT, MEDIA_KEY, RUN_CODE, STEP_METRIC
from tensormeter.disk.private import open_file
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Attribute, Event

__all__ = ["SUFFIX", "Item", "event_of", "is_slow", "read_item", "unread_body"]

SUFFIX: Final = ".slow"
"""Suffix of a file whose item the agent is working on."""

_PREFIXES: Final = tuple(f'{{"event":"{name}",'.encode() for name in (RUN_CODE, ARTIFACT_EVENT))
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Item:
    """An item as the training process has recorded it.

    Attributes:
        path: File next to the ring that describes the item. It is deleted when the item's last event is in the spool.
        process: ID of the process.
        resource: Attributes of the process, with the attempt number that it has recorded.
        header: Event name, key, step, time and body of the item.
    """

    path: Path
    process: str
    resource: dict[str, Any]
    header: dict[str, Any]

    @property
    def event(self) -> str:
        """Name of the event."""
        return str(self.header["event"])

    @property
    def body(self) -> dict[str, Any]:
        """Body that the training process has recorded."""
        return dict(self.header["body"])


def is_slow(path: Path) -> bool:
    """Return whether a file next to a ring describes an item of this kind.

    Raises:
        OSError: The file cannot be read.
    """
    longest = max(map(len, _PREFIXES))
    with open(open_file(path, os.O_RDONLY), "rb", buffering=0) as file:
        return file.read(longest).startswith(_PREFIXES)


def read_item(path: Path, process: str, resource: dict[str, Any]) -> Item:
    """Read an item's file. See `Item` for the arguments.

    Raises:
        EncodingError: The file is damaged.
    """
    try:
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            header = json.loads(file.read(_MOST_BYTES))
        item = Item(path, process, resource, header)
        if not isinstance(header["time"], int) or not isinstance(header["body"], dict):
            raise TypeError("invalid time or body")
        event_of(item, {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncodingError(f"{path.name}: {type(error).__name__}: {error}") from None
    return item


def event_of(item: Item, body: dict[str, Any]) -> Event:
    """Return the event of an item. Events of the same item have the same time, key and step."""
    attributes: dict[str, Attribute] = {}
    if isinstance(item.header["step"], int):
        attributes[STEP_METRIC] = item.header["step"]
    if isinstance(item.header["key"], str):
        attributes[MEDIA_KEY] = item.header["key"]
    return Event(item.event, item.header["time"], body, attributes)


def unread_body(item: Item, problem: str) -> dict[str, Any]:
    """Return the body of an item's event if nothing is read from the disk, for the given reason."""
    if item.event == RUN_CODE:
        return {"git": None, "source": None, "packages": {}, **code_of(item.resource), "problem": problem}
    if "uri" in item.body:
        problem = "the digests of addresses are not computed"
    return {**item.body, "folder": None, "size": None, "files": None, "digest": None, "problem": problem}
