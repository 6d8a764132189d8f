"""Import of a divided request's progress from the file in which earlier versions stored it.

Earlier versions wrote `outgoing.json` into the destination's folder. The spool now stores the progress with the request
(`request_pieces`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.spool.errors import SpoolFullError
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.spool.spool_queries import Head
from tensormeter.disk.checked_json import unpack
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.logger import get_logger

__all__ = ["take_over_progress"]

logger: Final = get_logger("tensormeter.agent")


def take_over_progress(spool: Spool, destination: str, signals: Sequence[Signal], folder: Path) -> None:
    """Move the progress of the oldest request from the file into the spool, if there is a file.

    Args:
        spool: Spool to write to.
        destination: Name of the destination.
        signals: Signals of the delivery.
        folder: Folder of the destination.

    Raises:
        SpoolError: The spool cannot be written, although the disk has room. The file is kept.
        OSError: The file cannot be removed.
    """
    file = folder / ("outgoing.json" if tuple(signals) == SIGNALS else f"outgoing-{signals[0]}.json")
    try:
        text = file.read_bytes()
    except OSError:
        return
    head = spool.head(destination, signals)
    try:
        if head is not None and (sent := _translate(unpack(text), head, spool.sent_before(destination, head.sequence))):
            spool.remember(destination, head.sequence, sent)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: %s is damaged (%s); sending the whole request", destination, file, error)
    except SpoolFullError as error:  # delivery makes room
        logger.warning("%s: cannot use %s (%s); sending the whole request", destination, file, error)
        return
    file.unlink(missing_ok=True)


def _translate(document: dict[str, Any], head: Head, sent: str | None) -> str:
    """Return a request's progress in the spool's format; "" if the document describes none for this request."""
    before: dict[str, Any] = json.loads(sent) if sent else {}
    done = [str(item) for item in document["delivered"]]
    divisions = dict(document["divisions"])
    is_put_back = head.retried and document.get("retrying") != head.id  # the whole request is sent again
    if list(document["members"]) != [head.id] or is_put_back or not (done or divisions):
        return ""
    if before.get("divisions"):  # the spool's progress is newer than the file, or was taken over from it
        return ""
    halved: list[Any] = [[], False]
    for part in done:  # earlier versions did not record that they had halved oversized requests
        for ancestor in _ancestors(part, head.id):
            divisions.setdefault(ancestor, halved)
    refused = int(before.get("refused", 0))
    progress = {"delivered": done, "credit": refused, "commit": document.get("commit")}
    aside = [str(item) for item in document.get("aside", [])]
    return json.dumps({"members": [head.id], "divisions": divisions, "refused": 0, "aside": aside, **progress})


def _ancestors(part: str, request: str) -> Iterator[str]:
    """Yield the IDs of the pieces that contained a part, from the smallest up to the request."""
    while part != request and part.startswith(f"{request}."):
        part = part.rpartition(".")[0]
        yield part
