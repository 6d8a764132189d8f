"""A thread of the agent that works on items which take long, at the lowest priority."""

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from tensormeter.agent.background.artifact import DIGEST_RATE, Listing, NoDigestError, digest, list_files
from tensormeter.agent.background.code import describe_code
from tensormeter.agent.background.items import Item, unread_body
from tensormeter.conventions.semconv import RUN_CODE
from tensormeter.logger import get_logger

__all__ = ["Background", "Result"]

logger: Final = get_logger("tensormeter.agent")

_NICE: Final = 19

_SMALL: Final = 32 << 20
"""Size in bytes up to which an artifact gets one event. A larger one gets a second event with its digest."""


class Result(NamedTuple):
    """Body of an event for an item, and whether it is the item's last event."""

    item: Item
    body: dict[str, Any]
    is_last: bool


class _StoppedError(Exception):
    """The worker has been stopped."""


class Background:
    """Works on items in a thread, which starts with the first item.

    The thread only makes results; the agent's main thread, which alone may use the methods, puts them into the spool. An item
    first gets its size, and then its digest. Digests wait for each other, but sizes do not wait for digests.
    """

    def __init__(self, rate: float = DIGEST_RATE) -> None:
        """
        Args:
            rate: Maximum bytes per second to read for digests.
        """
        self._rate = rate
        self._items: dict[Path, Item] = {}
        """Items without their last event in the spool."""
        self._announced: set[Path] = set()
        """Those of them with an event in the spool."""
        self._known: dict[Path, dict[str, Any]] = {}
        """Latest body of items, for which a digest is still to be computed."""
        self._results: deque[Result] = deque()
        self._new: deque[Item] = deque()
        self._to_digest: deque[tuple[Item, dict[str, Any], Listing]] = deque()
        self._wakeup = threading.Condition()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def submit(self, item: Item) -> None:
        """Work on an item, unless this object already does."""
        if item.path in self._items:
            return
        self._items[item.path] = item
        with self._wakeup:
            self._new.append(item)
            self._wakeup.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tensormeter-background", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be started
                self.give_up("the agent could not start a thread")

    @property
    def has_results(self) -> bool:
        """Whether there are events to put into the spool."""
        return bool(self._results)

    @property
    def is_busy(self) -> bool:
        """Whether an item's last event is not in the spool."""
        return bool(self._items)

    def is_announced(self, process: str) -> bool:
        """Return whether each item of a process has an event in the spool."""
        return all(path in self._announced for path, item in self._items.items() if item.process == process)

    def deliver(self, put: Callable[[Item, dict[str, Any]], None]) -> None:
        """Put the events that are ready into the spool. An event for which `put` raises an exception stays ready."""
        while self._results:
            item, body, is_last = self._results[0]
            if item.path in self._items:  # otherwise it was given up
                put(item, body)
            self._results.popleft()
            self._announced.add(item.path)
            if is_last:
                self._forget(item)

    def give_up(self, reason: str) -> None:
        """Stop working, and make last events for all items, with the reason why something is missing."""
        self._stopped.set()
        with self._wakeup:
            self._wakeup.notify()
        ready = {result.item.path for result in self._results if result.is_last}
        for path, item in self._items.items():
            if path not in ready:
                known = self._known.get(path)
                body = unread_body(item, reason) if known is None else {**known, "problem": reason}
                self._results.append(Result(item, body, True))

    def stop(self) -> None:
        """Stop working. Items that are not finished stay in their files."""
        self._stopped.set()
        with self._wakeup:
            self._wakeup.notify()

    def _forget(self, item: Item) -> None:
        with contextlib.suppress(OSError):
            item.path.unlink(missing_ok=True)
        self._items.pop(item.path, None)
        self._known.pop(item.path, None)
        self._announced.discard(item.path)

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere, this would apply to the whole process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        with contextlib.suppress(_StoppedError):
            while True:
                with self._wakeup:
                    while not self._new and not self._to_digest:
                        self._pause(0)
                        self._wakeup.wait()
                self._describe_new()
                if self._to_digest:
                    self._digest(*self._to_digest.popleft())

    def _pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            _StoppedError: The worker has been stopped.
        """
        if self._stopped.wait(seconds) if seconds else self._stopped.is_set():
            raise _StoppedError

    def _describe_new(self) -> None:
        while self._new:
            item = self._new.popleft()
            self._pause(0)
            try:
                self._describe(item)
            except Exception as error:
                logger.exception("cannot describe %s", item.event)
                self._results.append(Result(item, unread_body(item, f"{type(error).__name__}: {error}"), True))

    def _describe(self, item: Item) -> None:
        if item.event == RUN_CODE:
            self._results.append(Result(item, describe_code(item.body, item.resource), True))
            return
        path = item.body.get("path")
        if not isinstance(path, str):
            self._results.append(Result(item, unread_body(item, ""), True))
            return
        try:
            listing = list_files(path)
        except NoDigestError as error:
            self._results.append(Result(item, unread_body(item, str(error)), True))
            return
        body = {
            **unread_body(item, ""),
            "folder": listing.is_folder,
            "size": listing.size,
            "files": len(listing.files),
        }
        if listing.size > _SMALL:
            self._known[item.path] = body
            self._results.append(Result(item, body, False))
        self._to_digest.append((item, body, listing))

    def _digest(self, item: Item, body: dict[str, Any], listing: Listing) -> None:
        def pause(seconds: float) -> None:
            self._pause(seconds)
            self._describe_new()

        try:
            result = {"digest": digest(body["path"], listing, pause, self._rate)}
        except NoDigestError as error:
            result = {"problem": str(error)}
        except _StoppedError:
            raise
        except Exception as error:
            logger.exception("cannot compute a digest")
            result = {"problem": f"{type(error).__name__}: {error}"}
        self._results.append(Result(item, body | result, True))
