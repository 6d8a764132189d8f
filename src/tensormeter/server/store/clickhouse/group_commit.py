"""Group commits, in which requests that wait at the same time share one commit."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.commit import Commit
from tensormeter.server.store.clickhouse.commit_cache import CommitCache
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.keys import Numbers
from tensormeter.server.store.clickhouse.log_lines import LogTrimmer
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.models.runs import Receipt

__all__ = ["GroupCommit"]


class GroupCommit:
    """A group commit for requests from any thread. One of the waiting threads commits all requests.

    If the server dies during a commit, the sender can safely retry the request on any server. A commit inserts
    processes, series, summaries, points, events, log lines, arrival log entries, and finally batch IDs. Each summary of a series contains the
    time of its latest point. With this time, a retry finds the points that may already be stored, and writes the others. Points
    written twice have the same key and are merged.
    """

    def __init__(
        self, connection: Connection, numbers: Numbers, log: Log, trimmer: LogTrimmer, interval: float
    ) -> None:
        """Create a group commit.

        Args:
            connection: Connection to ClickHouse.
            numbers: Source of arrival numbers.
            log: Arrival log to write to.
            trimmer: Trimmer of log lines.
            interval: Minimum seconds between two commits. Each commit creates parts in several tables, which ClickHouse
                must merge.
        """
        self._connection = connection
        self._numbers = numbers
        self._log = log
        self._trimmer = trimmer
        self._interval = interval
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._waiting: list[Request] = []
        self._begun = 0.0
        self._cache = CommitCache(connection, log)

    def commit(self, request: Request) -> Receipt:
        """Store a request, possibly together with others. Blocks until the request is stored.

        Raises:
            BatchConflictError: The batch ID is already stored with a different payload.
            StoreUnavailableError: The request failed and may be partly stored; a retry completes it.
        """
        with self._lock:
            self._waiting.append(request)
        with self._committing:
            while not request.done.is_set():
                self._commit_waiting()
        return request.answer()

    def forget(self) -> None:
        """Clear the cache, because ClickHouse may have lost rows: it failed."""
        with self._committing:
            self._cache.forget()

    @contextmanager
    def alone(self) -> Iterator[int]:
        """Block commits and yield the next arrival number, so that the caller can add a log entry in order."""
        with self._committing:
            yield self._numbers.take()

    def _commit_waiting(self) -> None:
        pause = self._begun + self._interval - time.monotonic()
        if pause > 0:
            threading.Event().wait(pause)  # more requests can join in the meantime
        self._begun = time.monotonic()
        with self._lock:
            requests, self._waiting = self._waiting, []
        try:
            again = Commit(
                self._connection,
                self._numbers,
                self._log,
                cache=self._cache,
                trimmer=self._trimmer,
                requests=requests,
            ).run()
        except Exception as error:
            self._cache.forget()
            outcome = error if isinstance(error, StoreUnavailableError) else _failure(error)
            for request in requests:
                if not request.done.is_set():
                    request.settle(outcome)
            # Some data may have been written without a log entry, so invalidate all cursors.
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
            return  # the next entry uses the new server ID


def _failure(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"the store failed with {type(error).__name__}; see the server's log")
