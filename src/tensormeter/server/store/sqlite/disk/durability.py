"""A thread that syncs a SQLite store to disk and tracks which commits would survive a power failure.

SQLite writes a commit to the write-ahead log without waiting for the disk (`synchronous=NORMAL`). The thread then syncs
the log within `GROUP_INTERVAL` seconds, so that many commits share one sync. A sync makes all earlier commits durable,
even those in earlier logs, because SQLite syncs the database before it restarts the log.

On file systems without shared memory, SQLite uses a rollback journal and syncs the database itself. The thread then
syncs the journal after SQLite has truncated it. On file systems that cannot sync, neither SQLite nor the thread syncs,
and a power failure may lose any commit.

Commits are numbered from 1 in each *epoch*, which lasts while the store is open. A sender keeps accepted requests until
their commits are durable. If the epoch changes, the sender resends the requests that it kept, and the store
deduplicates them by batch ID.

A failed sync may have lost data even if the next sync succeeds. After a failure, no further commit counts as durable
until SQLite has copied its whole log to the database and synced the database.

This module can safely open and close SQLite's log and journal. Closing them releases no locks, because SQLite's locks
are on the database and the log's index.
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
"""Seconds between two syncs if no request waits for one. Commits normally become durable within two seconds."""

_LONGEST_WAIT: Final = 30.0
_RETRY_DELAY: Final = 1.0
_SUFFIXES: Final = ("-wal", "-journal")

_log: Final = logging.getLogger(__name__)


class LogSyncer:
    """A thread that numbers the commits of a store and syncs them, from `start` until `close`. Thread-safe."""

    def __init__(self, database: Path, carry_over: Callable[[], bool], *, interval: float = GROUP_INTERVAL) -> None:
        """Create a syncer.

        Args:
            database: Path of the SQLite file.
            carry_over: Function that copies SQLite's log to the database, and returns whether the whole log has been
                copied and synced. The syncer calls this function only after a failed sync, on the syncer's thread.
            interval: Seconds between two syncs if no request waits for one.
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
        """Identity (device and inode) and descriptor of SQLite's log and journal, by suffix of the file name."""
        self._thread = threading.Thread(target=self._run, name="tensormeter-sync", daemon=True)

    def start(self, durability: ServerDurability, *, syncs: bool = True) -> None:
        """Sync the current files and their names, and start the thread.

        Args:
            durability: Whether requests wait for syncs (`always`) or not (`group`).
            syncs: Whether a test at startup showed that the file system supports syncs.

        Raises:
            StoreError: With `always`, the file system cannot sync.
            StoreUnavailableError: With `always`, the disk failed to sync.
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
                    "tensormeter: the file system of %s cannot sync files (%s): a power failure may lose data stored "
                    "in the last few minutes, and senders get no information about durability; use a local disk",
                    self._database.parent,
                    error.strerror,
                )
            else:
                self._fail(error)
        if self._supported:
            self._thread.start()

    def note_commit(self) -> None:
        """Assign the next number to a commit. Call this method after the commit, before responding to the request."""
        with self._changed:
            self._committed += 1
            self._changed.notify_all()

    def give_up(self) -> None:
        """Stop guaranteeing durability because the file system cannot sync. The thread ends soon. Does not block."""
        with self._changed:
            self._supported = False
            self._problem = "the file system cannot sync files"
            self._changed.notify_all()

    def problem(self) -> str | None:
        """Return a message about failed syncs, or None. Does not block."""
        problem = self._problem
        if not problem or not (self._supported or self._is_promised):
            return None
        return f"cannot sync the store in {self._database.parent} ({problem}); new commits are not durable until syncing works again"

    def progress(self) -> Progress | None:
        """Return the numbers of the last commit and the last durable commit; None if the file system cannot sync."""
        with self._changed:
            return Progress(self._epoch, self._committed, self._durable) if self._supported else None

    def sync(self, timeout: float) -> Progress | None:
        """Sync all current commits, and return the same as `progress`. Blocks for up to `timeout` seconds.

        Concurrent callers share one sync.
        """
        with self._changed:
            self._wait(self._committed, timeout)
        return self.progress()

    def settle(self) -> None:
        """Wait until all current commits are durable. Blocks for up to 30 seconds.

        Raises:
            StoreUnavailableError: The disk failed to sync the commits, or took too long.
        """
        with self._changed:
            through = self._committed
            if not self._wait(through, _LONGEST_WAIT):
                why = self._problem or f"the disk took longer than {_LONGEST_WAIT:g} s"
                raise StoreUnavailableError(f"stored, but not synced to disk yet ({why}); retry the request later")

    def close(self) -> None:
        """Stop the thread. Callers that wait for a sync return, even though their commits are not durable."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._close_files()

    def _wait(self, through: int, timeout: float) -> bool:
        """Wait for all commits up to a number to become durable, and return whether they are.

        The caller must hold the lock of `_changed`.

        Args:
            through: Number of the last commit to wait for.
            timeout: Maximum seconds to wait.
        """
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
            except Exception as error:  # the next attempt may succeed after any error
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
                    _log.warning("tensormeter: syncing the store in %s works again", self._database.parent)
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
                "tensormeter: cannot sync the store in %s (%s): a power failure would lose data stored from now on; "
                "agents keep that data and resend it",
                self._database.parent,
                reason,
            )

    def _sync_files(self) -> None:
        """Sync SQLite's log and journal, and also the folder if a file was created or removed."""
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
                names_changed |= suffix == "-wal"  # if there is no log, the journal's name must also be durable
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
