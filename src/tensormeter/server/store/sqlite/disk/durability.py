"""Durability: how far commits of a SQLite store survive a power failure.

SQLite writes a commit into its log and does not wait for the disk (`synchronous=NORMAL`). A thread syncs that log in groups, at
the latest `GROUP_INTERVAL` seconds after a commit, so many commits share one sync. After a sync of the log, every earlier commit
is durable: those in the log, and those of earlier logs too, because SQLite syncs the database before it restarts the log. With a
rollback journal (file systems without shared memory) SQLite syncs the database itself, and this module syncs the end of the
journal. On a file system that cannot sync, SQLite does not sync either, and nothing is promised.

Commits are numbered from 1 in each *epoch*; an epoch is one opening of the store. A sender keeps accepted requests until their
numbers are durable. If the epoch changes, it resends the requests that it kept, and the store deduplicates by batch id.

A failed sync may have lost its data, although the next sync would succeed. So after a failure, nothing is durable until SQLite has
copied its whole log to the database, which it syncs itself.

This module may open and close the files of SQLite's log and journal. SQLite's locks are on the database and its index, so closing
these files releases none.
"""

import contextlib
import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensormeter.disk.fsync import REFUSALS, fsync, fsync_names
from tensormeter.errors import StoreError
from tensormeter.server.store.models.durability import Progress, ServerDurability
from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["GROUP_INTERVAL", "LogSyncer"]


GROUP_INTERVAL: Final = 1.0
"""Seconds between two syncs without a request. Together with the duration of a sync they stay below two seconds."""

_LONGEST_WAIT: Final = 30.0
_RETRY_DELAY: Final = 1.0
_SUFFIXES: Final = ("-wal", "-journal")

_log: Final = logging.getLogger(__name__)


class LogSyncer:
    """Numbers the commits of one store, and syncs them on a thread from `start` until `close`. Any thread may call it."""

    def __init__(self, database: Path, carry_over: Callable[[], bool], *, interval: float = GROUP_INTERVAL) -> None:
        """Create a syncer.

        Args:
            database: SQLite file.
            carry_over: Callable that copies SQLite's log to the database, and returns whether all of it is there and synced. The
                syncer's thread calls it after failures only.
            interval: Seconds between two syncs without a request.
        """
        self._database = database
        self._carry_over = carry_over
        self._interval = interval
        self._epoch = secrets.token_hex(8)
        self._changed = threading.Condition()
        self._committed = self._durable = 0
        self._wanted = False
        self._closed = False
        self._supported = True
        self._is_promised = False
        self._problem = ""
        self._files: dict[str, tuple[tuple[int, int], int]] = {}
        """Descriptors of SQLite's log and journal by suffix, each with the file's identity."""
        self._thread = threading.Thread(target=self._run, name="tensormeter-sync", daemon=True)

    def start(self, durability: ServerDurability, *, syncs: bool = True) -> None:
        """Make the present contents durable, including the names of the files, and start the thread.

        Args:
            durability: Whether callers wait for syncs.
            syncs: Whether the file system can sync, as far as is known.

        Raises:
            StoreError: With `always`, on a file system that cannot sync.
            StoreUnavailableError: With `always`, on a disk that fails to sync.
        """
        self._is_promised = durability == "always"
        try:
            if not syncs:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            self._sync_files()
            fsync_names(self._database.parent)
        except OSError as error:
            self._supported = error.errno not in REFUSALS
            if durability == "always":
                where = f"{self._database.parent}: the file system cannot sync files ({error.strerror})"
                if not self._supported:
                    self._close_files()
                    raise StoreError(f"{where}; start with --durability group, or use another data folder") from error
                raise StoreUnavailableError(
                    f"cannot sync the store in {self._database.parent}: {error.strerror}"
                ) from error
            if not self._supported:
                _log.warning(
                    "tensormeter: the file system of %s cannot sync files (%s): a power failure may lose data stored in "
                    "the last minutes, and senders get no information about durability; use a local disk",
                    self._database.parent,
                    error.strerror,
                )
            else:
                self._fail(error)
        if self._supported:
            self._thread.start()

    def note_commit(self) -> None:
        """Number a commit. Call it after the commit, before the request is answered."""
        with self._changed:
            self._committed += 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """Stop promising durability, because the file system cannot sync, and end the thread soon. Does not block."""
        with self._changed:
            self._supported = False
            self._problem = "the file system cannot sync files"
            self._changed.notify_all()

    def problem(self) -> str | None:
        """Return a message for people about failed syncs, or None. Does not block."""
        problem = self._problem
        if not problem or not (self._supported or self._is_promised):
            return None
        return f"the store in {self._database.parent} cannot be synced ({problem}); new commits are not durable until it can"

    def progress(self) -> Progress | None:
        """Return the present progress; None if the file system cannot sync, so that durability is unknown."""
        with self._changed:
            return Progress(self._epoch, self._committed, self._durable) if self._supported else None

    def sync(self, timeout: float) -> Progress | None:
        """Sync the present commits, in one sync for all callers. Blocks for `timeout` seconds at most.

        Returns:
            Progress after the sync.
        """
        with self._changed:
            self._wait(self._committed, timeout)
        return self.progress()

    def settle(self) -> None:
        """Wait until all present commits are durable.

        Raises:
            StoreUnavailableError: The disk fails to sync them, or takes too long.
        """
        with self._changed:
            through = self._committed
            if not self._wait(through, _LONGEST_WAIT):
                why = self._problem or f"the disk takes longer than {_LONGEST_WAIT:g} s"
                raise StoreUnavailableError(
                    f"stored, but not synced to disk yet ({why}); send this request again later"
                )

    def close(self) -> None:
        """End the thread. Waiting callers continue without durable commits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._close_files()

    def _wait(self, through: int, timeout: float) -> bool:
        """Wait some seconds until commits up to a number are durable; return whether they are. The caller holds the condition's lock."""
        if self._durable < through and self._supported:
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._durable >= through or self._has_ended, timeout)
        return self._durable >= through

    @property
    def _has_ended(self) -> bool:
        return self._closed or not self._supported

    def _run(self) -> None:
        delay = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_ended or self._durable < self._committed)
                if not self._has_ended and delay:
                    self._changed.wait_for(lambda: self._has_ended or (self._wanted and not self._problem), delay)
                if self._has_ended:
                    return
                self._wanted = False
                through = self._committed
            began = time.monotonic()
            try:
                self._sync_files()
                if self._problem and not self._carry_over():
                    raise OSError("the log cannot be copied to the database yet")
            except Exception as error:  # the next try may succeed after any error
                if not isinstance(error, OSError | StoreError):
                    _log.exception("tensormeter: syncing the store failed")
                self._fail(error)
                self._close_files()  # the descriptors may be stale
                delay = _RETRY_DELAY
                continue
            with self._changed:
                if not self._supported:
                    return
                if self._problem:
                    _log.warning("tensormeter: the store in %s can be synced again", self._database.parent)
                self._problem = ""
                self._durable = through
                self._wanted &= through < self._committed
                self._changed.notify_all()
            delay = max(0.0, self._interval - (time.monotonic() - began))

    def _fail(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        with self._changed:
            if not self._supported:
                return
            is_new, self._problem = not self._problem, reason
        if is_new:
            _log.error(
                "tensormeter: the store in %s cannot be synced (%s): a power failure would lose data stored since; "
                "agents keep that data and resend it",
                self._database.parent,
                reason,
            )

    def _sync_files(self) -> None:
        """Sync SQLite's log and journal, and the folder if one of them was created or removed."""
        names_changed = False
        for suffix in _SUFFIXES:
            path = self._database.with_name(self._database.name + suffix)
            try:
                status = os.stat(path, follow_symlinks=False)
                identity = status.st_dev, status.st_ino
            except FileNotFoundError:
                identity = None
            opened = self._files.get(suffix)
            if opened is not None and opened[0] != identity:
                os.close(self._files.pop(suffix)[1])
                names_changed, opened = True, None
            if identity is None:
                names_changed |= suffix == "-wal"  # without a log, the journal's name must be durable, too
                continue
            if opened is None:
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except FileNotFoundError:  # the journal has just been removed
                    names_changed = True
                    continue
                self._files[suffix] = opened = identity, descriptor
                names_changed = True
            fsync(opened[1])
        if names_changed:
            fsync_names(self._database.parent)

    def _close_files(self) -> None:
        for _, descriptor in self._files.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._files.clear()
