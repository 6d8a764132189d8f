"""The arrival log, in which each server records its recent commits. Readers query it for data newer than a cursor.

A cursor contains the number of each server's last entry. If a commit fails, or if part of a request is already stored,
the server continues under a new ID. A cursor that lacks the ID of a server is invalid, and a reader with an invalid
cursor reads everything again.
"""

import re
import secrets
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.rowbinary import encode_rows

__all__ = ["NAMED", "Arrived", "Log", "newest"]

_KEPT: Final = 3600
_GOOD: Final = 3000
"""Seconds for which a cursor stays valid. Entries are read for longer (`_KEPT`), because server clocks differ."""

_REPEAT: Final = 600
_CURSOR: Final = re.compile(r"(\d{1,16})((?:-[0-9a-f]{1,16}\.\d{1,18}){0,1000})", re.ASCII)
_COLUMNS: Final = {
    "received": "I",
    "run": "Q",
    "server": "Q",
    "number": "Q",
    "first": "q",
    "metrics": "a",
    "events": "B",
    "read_all": "B",
    "series": "A",
}
_NO_SERIES: Final = np.empty(0, np.uint64)

NAMED: Final = 1000
"""Maximum number of metrics in an entry. An entry for more metrics contains the keys of their series instead."""

_ACTIVE: Final = 600
"""Seconds within which entries of other servers show that the series of a run may have changed; see `Log.others`."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """A log entry: the data that arrived for a run in one commit.

    Attributes:
        run: Key of the run; 0 in an empty entry.
        number: Arrival number of the commit.
        first: Earliest time of a point, in nanoseconds since the Unix epoch; 0 without points.
        metrics: Names of the metrics with new points; empty if there are more than `NAMED`.
        events: Whether the commit contains events.
        read_all: Whether readers must read all points again, because the start of an attempt has changed or gaps have
            arrived.
        series: uint64: keys of the series with new points, if there are more than `NAMED` metrics. Empty in entries that were
            read.
        many: Whether an entry that was read has such keys.
        logs: Whether the commit contains log lines.
    """

    run: int
    number: int
    first: int
    metrics: Sequence[str]
    events: bool
    read_all: bool = False
    series: NDArray[np.uint64] = field(default_factory=lambda: _NO_SERIES, repr=False)
    many: bool = False
    logs: bool = False


class Log:
    """The arrival log. This server adds entries to the log, and reads the entries of all servers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._server = 0
        self._lock = threading.Lock()
        self._written = 0.0

    def begin(self, number: int) -> None:
        """Switch to a new server ID, and write an empty entry."""
        with self._lock:
            self._server = secrets.randbits(63) + 1
        self._write_empty(number)

    def repeat(self, number: int) -> None:
        """Write an empty entry if the last entry is old, so that cursors stay valid while the store is idle."""
        if time.monotonic() - self._written > _REPEAT:
            self._write_empty(number)

    def write(self, arrived: Sequence[Arrived]) -> None:
        """Add entries to the log, in ascending order of number."""
        received = int(time.time())
        server = self._server
        rows = [
            (
                received,
                a.run,
                server,
                a.number,
                a.first,
                sorted(a.metrics),
                a.events | a.logs << 1,
                a.read_all,
                a.series,
            )
            for a in arrived
        ]
        self._connection.insert("arrival", _COLUMNS, encode_rows(_COLUMNS, rows))
        self._written = time.monotonic()

    def cursor(self) -> str:
        """Return a cursor for the current end of the log."""
        last = self._last()
        return f"{int(time.time())}" + "".join(f"-{server:x}.{number}" for server, number in sorted(last.items()))

    def since(self, cursor: str, run: int | None = None, upto: str | None = None) -> list[Arrived] | None:
        """Return the entries after a cursor, for one run or for all runs; None if the cursor is invalid.

        If `upto` is a cursor of this log, entries after it are omitted.
        """
        newer = self._newer(cursor, run, upto)
        if not newer:
            return None if newer is None else []
        rows = self._connection.rows(
            f"SELECT run, number, first, metrics, events, read_all, notEmpty(series) FROM arrival WHERE {newer} ORDER BY number"
        )
        return [
            Arrived(
                row[0], row[1], row[2], row[3], bool(row[4] & 1), bool(row[5]), many=bool(row[6]), logs=bool(row[4] & 2)
            )
            for row in rows
        ]

    def metrics(self, cursor: str, limit: int) -> dict[int, set[str]]:
        """Return up to `limit` names of the metrics in entries with more than `NAMED` series after a cursor, by run."""
        newer = self._newer(cursor, None)
        metrics: dict[int, set[str]] = {}
        if newer:
            series = f"SELECT run, arrayJoin(series) FROM arrival WHERE {newer}"
            runs = f"SELECT run FROM arrival WHERE {newer} AND notEmpty(series)"
            for run, metric in self._connection.rows(
                "SELECT DISTINCT run, metric FROM catalog"
                f" WHERE run GLOBAL IN ({runs}) AND (run, series) GLOBAL IN ({series}) LIMIT {limit} BY run"
            ):
                metrics.setdefault(run, set()).add(metric)
        return metrics

    def others(self, runs: Collection[int]) -> dict[int, int]:
        """Return the number of the newest entry that other servers have recently added for each run."""
        if not runs:
            return {}
        rows = self._connection.rows(
            f"SELECT run, max(number) FROM arrival WHERE received > toDateTime({int(time.time()) - _ACTIVE})"
            f" AND run IN ({numbers(runs)}) AND server != {self._server} GROUP BY run"
        )
        return {row[0]: row[1] for row in rows}

    def _last(self) -> dict[int, int]:
        """Return the number of each server's last entry."""
        rows = self._connection.rows(
            f"SELECT server, max(number) FROM arrival WHERE received > {_since()} GROUP BY server"
        )
        return {row[0]: row[1] for row in rows}

    def _newer(self, cursor: str, run: int | None, upto: str | None = None) -> str | None:
        """Return a condition for the entries after a cursor, "" if there are none, or None if the cursor is invalid.

        The condition excludes entries after the cursor `upto`.
        """
        known = _parse(cursor)
        if known is None:
            return None
        end = None if upto is None else _parse(upto)
        last = self._last() if end is None else end
        if any(server not in known for server in last):
            return None
        newer = " OR ".join(
            f"(server = {server} AND number > {known[server]}{'' if end is None else f' AND number <= {number}'})"
            for server, number in last.items()
            if number > known[server]
        )
        only = "run != 0" if run is None else f"run = {run}"
        return newer and f"received > {_since()} AND {only} AND ({newer})"

    def _write_empty(self, number: int) -> None:
        self.write([Arrived(0, number, 0, (), events=False)])


def newest(cursor: str | None) -> int | None:
    """Return the highest number in a cursor; None if it has none."""
    known = None if cursor is None else _parse(cursor)
    return max(known.values()) if known else None


def _since() -> str:
    return f"toDateTime({int(time.time()) - _KEPT})"


def _parse(text: str) -> Mapping[int, int] | None:
    match = _CURSOR.fullmatch(text)
    if match is None or not 0 <= time.time() - int(match[1]) < _GOOD:
        return None
    pairs = (part.split(".") for part in match[2].split("-")[1:])
    return {int(server, 16): int(number) for server, number in pairs}
