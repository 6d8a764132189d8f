"""Group commit: requests that wait at the same time share a commit."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.commit import Commit
from tensormeter.server.store.clickhouse.commit_cache import CommitCache
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.keys import Numbers
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.models.runs import Receipt

__all__ = ["GroupCommit"]


class GroupCommit:
    """Commits requests of any thread; one of the waiting threads commits for all.

    The order of a commit's inserts makes it safe to send a request again, to this server or another, after a death in between:
    processes, series with the time of their latest point, points, events, the log, and the batch's id last. A retry looks up the
    points that may be stored, by the times of the series, and writes the rest. A point that is written twice is one, by its key.
    """

    def __init__(self, connection: Connection, numbers: Numbers, log: Log, interval: float) -> None:
        """Args:
        interval: Minimum seconds between two commits. Each commit makes a part in several tables, which ClickHouse has to merge.
        """
        self._connection = connection
        self._numbers = numbers
        self._log = log
        self._interval = interval
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._waiting: list[Request] = []
        self._begun = 0.0
        self._cache = CommitCache()

    def commit(self, request: Request) -> Receipt:
        """Store a request, perhaps together with others; blocks until it is stored.

        Raises:
            BatchConflictError: Its id is stored with another payload.
            StoreUnavailableError: It may be stored in part; a retry completes it.
        """
        with self._lock:
            self._waiting.append(request)
        with self._committing:
            while not request.done.is_set():
                self._commit_waiting()
        return request.answer()

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Keep commits out, and give the next number: entries of the log must be in the order of numbers."""
        with self._committing:
            yield self._numbers.take()

    def _commit_waiting(self) -> None:
        pause = self._begun + self._interval - time.monotonic()
        if pause > 0:
            threading.Event().wait(pause)  # others join meanwhile
        self._begun = time.monotonic()
        with self._lock:
            requests, self._waiting = self._waiting, []
        try:
            again = Commit(self._connection, self._numbers, self._log, cache=self._cache, requests=requests).run()
        except Exception as error:
            self._cache.forget()
            outcome = error if isinstance(error, StoreUnavailableError) else _failure(error)
            for request in requests:
                if not request.done.is_set():
                    request.settle(outcome)
            # The log has no entry for what was written, so cursors must become invalid.
            self._renew()
            if outcome is not error:
                raise
            return
        with self._lock:
            self._waiting[:0] = again

    def _renew(self) -> None:
        try:
            self._log.begin(self._numbers.take())
        except StoreUnavailableError:
            return  # the next entry has the new name


def _failure(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"the store failed with {type(error).__name__}; see the server's log")
