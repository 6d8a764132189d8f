"""Group commit: requests that wait together are one commit."""

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

__all__ = ["Committer"]


class Committer:
    """Takes requests of any thread; one of those that wait commits for all.

    The order of a commit's inserts makes it safe to send a request again, to this server or another, after a death in between:
    processes, series with the time of their latest point, points, events, the log, and the batch's id last. A retry looks up the
    points that may be stored, by the times of the series, and writes the rest. A point that is written twice is one, by its key.
    """

    def __init__(self, connection: Connection, numbers: Numbers, log: Log, interval: float) -> None:
        """Args:
        interval: Seconds between two commits, at least: each is a part in every table, and parts have to be merged.
        """
        self._connection = connection
        self._numbers = numbers
        self._log = log
        self._interval = interval
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._waiting: list[Request] = []
        self._begun = 0.0
        self._memory = CommitCache()

    def commit(self, request: Request) -> Receipt:
        """Store a request; blocks until it is stored, with others perhaps.

        Raises:
            BatchConflictError: Its id is known with another payload.
            StoreUnavailableError: It may be stored in part; sending it again completes it.
        """
        with self._lock:
            self._waiting.append(request)
        with self._committing:
            while not request.done.is_set():
                self._commit_waiting()
        return request.answer()

    @contextmanager
    def alone(self) -> Iterator[int]:
        """While no commit is under way, with the next number: what is logged must be logged in the order of numbers."""
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
            again = Commit(self._connection, self._numbers, self._log, memory=self._memory, requests=requests).run()
        except Exception as error:
            self._memory.forget()
            outcome = error if isinstance(error, StoreUnavailableError) else _failure(error)
            for request in requests:
                if not request.done.is_set():
                    request.settle(outcome)
            # What was written of it is in no reader's log: whoever holds a cursor must read anew.
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
            return  # the next entry, whenever it can be written, has the new name


def _failure(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"the store failed, and the server's log says why: {type(error).__name__}")
