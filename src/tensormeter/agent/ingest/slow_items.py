"""The slow items of one process, code and artifacts, on their way to the background thread and back."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.background.items import event_of, read_item, unread_body
from tensormeter.agent.background.worker import Background
from tensormeter.agent.ingest.media_inbox import Inbox, Piece
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Event

__all__ = ["SlowItems"]

_ANNOUNCEMENT_TIMEOUT: Final = 3.0
"""Maximum seconds that the end of a process waits until its code is described and the sizes of its artifacts are known."""

_TICKS: Final = 1.0
"""Further seconds that it waits until artifacts of unknown size are in the spool."""

_NOT_READ: Final = "no agent was running"


class SlowItems:
    """The slow items of one process. Only the agent's main thread may use it."""

    def __init__(
        self,
        process: str,
        resource: Callable[[], Mapping[str, Any]],
        inbox: Inbox,
        background: Background | None,
    ) -> None:
        """
        Args:
            process: ID of the process.
            resource: Function that returns the attributes that the process has recorded.
            inbox: Media files of the process.
            background: Thread that describes items; None to describe them without reading their files.
        """
        self._process = process
        self._resource = resource
        self._inbox = inbox
        self._background = background
        self._announced_by = 0.0
        """Time at which `must_wait` stops waiting for the first events of items; 0 before its first call."""

    def resume(self) -> Iterator[tuple[Path, Event | None]]:
        """Continue with the items that an earlier agent has not finished.

        Yields:
            Files to delete, each with the event to store first, or None if the file is damaged.
        """
        for path in self._inbox.handed_over():
            try:
                item = read_item(path, self._process, dict(self._resource()))
            except EncodingError:
                yield path, None
                continue
            if self._background is None:
                yield path, event_of(item, unread_body(item, _NOT_READ))
            else:
                self._background.submit(item)

    def take(self, piece: Piece) -> Event | None:
        """Hand a piece over to the background thread, or return its event if this is not possible.

        Raises:
            EncodingError: The file is damaged.
        """
        problem = _NOT_READ
        if self._background is not None:
            try:
                self._background.submit(piece.hand_over(self._process, self._resource()))
            except OSError as error:
                problem = f"the agent could not rename a file ({error.strerror})"
            else:
                return None
        return piece.unread_event(self._process, self._resource(), problem)

    def must_wait(self) -> bool:
        """Return whether the end of the process must wait, so that `finish` does not return before they are recorded."""
        if self._background is None or self._background.is_announced(self._process):
            return False
        now = time.monotonic()
        if not self._announced_by:
            self._announced_by = now + _ANNOUNCEMENT_TIMEOUT
        elif now > self._announced_by:
            self._background.announce(self._process)
        return now < self._announced_by + _TICKS
