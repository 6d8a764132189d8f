"""Threads of the agent that work on items which take long."""

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

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

T = TypeVar("T")


class Result(NamedTuple):
    """Body of an event for an item, and whether it is the item's last event."""

    item: Item
    body: dict[str, Any]
    is_last: bool


class _Digest(NamedTuple):
    """A digest to compute."""

    item: Item
    body: dict[str, Any]
    listing: Listing


class _StoppedError(Exception):
    """The work has been stopped."""


class _Worker(Generic[T]):
    """A thread that works on one task after another. It starts with the first one."""

    def __init__(self, name: str, work: Callable[[T], None], *, nice: int = 0) -> None:
        """
        Args:
            name: Name of the thread.
            work: Function to call for each task. `_StoppedError` ends the thread.
            nice: Priority of the thread, from 0 to 19 (lowest); 0 for that of the process. Applies on Linux only.
        """
        self._name = name
        self._work = work
        self._nice = nice
        self._tasks: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, task: T) -> None:
        """Work on a task.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._tasks.put(task)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """End the thread after the tasks that have been submitted."""
        self._tasks.put(None)

    def _run(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere, this would apply to the whole process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        with contextlib.suppress(_StoppedError):
            while (task := self._tasks.get()) is not None:
                self._work(task)


class Background:
    """Describes code and artifacts in one thread, and computes digests in another one, at the lowest priority.

    The threads only make results; the agent's main thread, which alone may use the methods, puts them into the spool. An
    artifact first gets its size, and then its digest. Digests wait for each other, but sizes do not wait for digests.
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
        self._stopped = threading.Event()
        self._describer = _Worker[Item]("tensormeter-describe", self._describe)
        self._digester = _Worker[_Digest]("tensormeter-digest", self._digest, nice=_NICE)

    def submit(self, item: Item) -> None:
        """Work on an item, unless this object already does."""
        if item.path in self._items:
            return
        self._items[item.path] = item
        try:
            self._describer.submit(item)
        except RuntimeError:
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

    def announce(self, process: str) -> None:
        """Make events for artifacts of a process that have none yet, with what is known without reading the disk."""
        ready = {result.item.path for result in list(self._results)}  # copied at once, because threads add results
        for path, item in self._items.items():
            if item.process == process and item.event != RUN_CODE and path not in ready | self._announced:
                self._results.append(Result(item, unread_body(item, ""), False))

    def deliver(self, put: Callable[[Item, dict[str, Any]], None]) -> None:
        """Put the events that are ready into the spool. An event for which `put` raises an exception stays ready."""
        while self._results:
            item, body, is_last = self._results[0]
            if item.path in self._items:  # otherwise it was given up
                put(item, body)
                self._announced.add(item.path)
            self._results.popleft()
            if is_last:
                self._forget(item)

    def give_up(self, reason: str) -> None:
        """Stop working, and make last events for all items, with the reason why something is missing."""
        self.stop()
        ready = {result.item.path for result in list(self._results) if result.is_last}
        for path, item in self._items.items():
            if path not in ready:
                known = self._known.get(path)
                body = unread_body(item, reason) if known is None else {**known, "problem": reason}
                self._results.append(Result(item, body, True))

    def stop(self) -> None:
        """Stop working. Items that are not finished stay in their files."""
        self._stopped.set()
        self._describer.stop()
        self._digester.stop()

    def _forget(self, item: Item) -> None:
        with contextlib.suppress(OSError):
            item.path.unlink(missing_ok=True)
        self._items.pop(item.path, None)
        self._known.pop(item.path, None)
        self._announced.discard(item.path)

    def _pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            _StoppedError: The work has been stopped.
        """
        if self._stopped.wait(seconds) if seconds else self._stopped.is_set():
            raise _StoppedError

    def _describe(self, item: Item) -> None:
        self._pause(0)
        try:
            body, listing = _describe(item)
            if listing is not None:
                if listing.size > _SMALL:
                    self._known[item.path] = body
                    self._results.append(Result(item, body, False))
                self._digester.submit(_Digest(item, body, listing))
                return
        except Exception as error:
            logger.exception("cannot describe %s", item.event)
            body = unread_body(item, f"{type(error).__name__}: {error}")
        self._results.append(Result(item, body, True))

    def _digest(self, task: _Digest) -> None:
        self._pause(0)
        try:
            result = {"digest": digest(task.body["path"], task.listing, self._pause, self._rate)}
        except NoDigestError as error:
            result = {"problem": str(error)}
        except _StoppedError:
            raise
        except Exception as error:
            logger.exception("cannot compute a digest")
            result = {"problem": f"{type(error).__name__}: {error}"}
        self._results.append(Result(task.item, task.body | result, True))


def _describe(item: Item) -> tuple[dict[str, Any], Listing | None]:
    """Return the body of an item, and the files whose digest is to be computed, if any."""
    if item.event == RUN_CODE:
        return describe_code(item.body, item.resource), None
    path = item.body.get("path")
    if not isinstance(path, str):
        return unread_body(item, ""), None
    try:
        listing = list_files(path)
    except NoDigestError as error:
        return unread_body(item, str(error)), None
    sizes = {"folder": listing.is_folder, "size": listing.size, "files": len(listing.files)}
    return unread_body(item, "") | sizes, listing
