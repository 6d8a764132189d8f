"""The log of arrivals: what each server has written lately, so that readers can ask for what is new.

A cursor says how far each server had come. It is good while these servers, and no others, write without a failure: one that has
failed, or has found that a part of a request is there already, goes on under another name, and who holds a cursor reads anew.
"""

import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.rowbinary import encode_rows

__all__ = ["Arrived", "Log"]

_KEPT: Final = 3600
_GOOD: Final = 3000
"""Seconds for which a cursor is good: less than what is looked at, for clocks differ."""

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
    "anew": "B",
}


@dataclass(frozen=True)
class Arrived:
    """What came for a run in one commit.

    Attributes:
        first: The earliest time of a point.
        events: Whether there were events.
        anew: Whether points must be read anew: an attempt turned out to begin earlier than was known, or there are gaps.
    """

    run: int
    number: int
    first: int
    metrics: Sequence[str]
    events: bool
    anew: bool = False


class Log:
    """Writes the log of this server, and reads the logs of all servers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._server = 0
        self._lock = threading.Lock()
        self._said = 0.0

    def begin(self, number: int) -> None:
        """Write under a new name from now on."""
        with self._lock:
            self._server = secrets.randbits(63) + 1
        self._say(number)

    def repeat(self, number: int) -> None:
        """Say now and then that this server is there, so that cursors of a quiet store stay good."""
        if time.monotonic() - self._said > _REPEAT:
            self._say(number)

    def write(self, arrived: Sequence[Arrived]) -> None:
        """Add to the log. Whoever calls this does so in the order of numbers."""
        received = int(time.time())
        server = self._server
        rows = [(received, a.run, server, a.number, a.first, sorted(a.metrics), a.events, a.anew) for a in arrived]
        self._connection.insert("arrival", _COLUMNS, encode_rows(_COLUMNS, rows))
        self._said = time.monotonic()

    def cursor(self) -> str:
        """How far all servers have come."""
        rows = self._connection.rows(
            f"SELECT server, max(number) FROM arrival WHERE received > {_since()} GROUP BY server"
        )
        return f"{int(time.time())}" + "".join(f"-{server:x}.{number}" for server, number in sorted(rows))

    def since(self, cursor: str, run: int | None = None) -> list[Arrived] | None:
        """What came after a cursor, of one run or of all; None if that is not known any more."""
        known = _parse(cursor)
        if known is None:
            return None
        rows = self._connection.rows(
            f"SELECT server, max(number) FROM arrival WHERE received > {_since()} GROUP BY server"
        )
        if any(server not in known for server, _ in rows):
            return None
        newer = " OR ".join(
            f"(server = {server} AND number > {known[server]})" for server, last in rows if last > known[server]
        )
        if not newer:
            return []
        only = "run != 0" if run is None else f"run = {run}"
        found = self._connection.rows(
            f"SELECT run, number, first, metrics, events, anew FROM arrival WHERE received > {_since()} AND {only} AND ({newer})"
            " ORDER BY number"
        )
        return [Arrived(row[0], row[1], row[2], row[3], bool(row[4]), bool(row[5])) for row in found]

    def _say(self, number: int) -> None:
        self.write([Arrived(0, number, 0, (), events=False)])


def _since() -> str:
    return f"toDateTime({int(time.time()) - _KEPT})"


def _parse(text: str) -> Mapping[int, int] | None:
    match = _CURSOR.fullmatch(text)
    if match is None or not 0 <= time.time() - int(match[1]) < _GOOD:
        return None
    pairs = (part.split(".") for part in match[2].split("-")[1:])
    return {int(server, 16): int(number) for server, number in pairs}
