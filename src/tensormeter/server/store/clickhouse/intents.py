"""What commits are about to write, so that others see what one of them has left half done.

A commit is *open* from its intent on, which is there before its points, until somebody says that it is over: its own server, in the
next intent or a few seconds later, or whoever has counted what it wrote (`recount`).

Points of an open commit may come into the store at any time. Another commit that brings points where an open one is about to write
leaves out those that are there, and *claims* the others: it counts them, and the open one does not, should it bring them as well.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.clickhouse.run_reader import numbers

__all__ = ["Description", "Intent", "Intents", "Times"]

Times = Mapping[int, NDArray[np.int64]]
"""Times of points by series."""


class Description(NamedTuple):
    """What a series is."""

    metric: str
    process: str
    kind: str
    scope: str
    attributes: str
    unit: str
    description: str


_COLUMNS: Final = {
    "number": "Q",
    "run": "Q",
    "server": "Q",
    "over": "Q",
    "first": "q",
    "last": "q",
    "series": "A",
    "described": "s",
    "claimed_from": "A",
    "claimed_series": "A",
    "claimed_time": "A",
}
_NONE: Final = np.empty(0, np.uint64)

_MARGIN: Final = 600
"""Seconds by which intents may appear later than their time says, and then some."""


@dataclass(frozen=True)
class Intent:
    """What a commit is about to write for one process of a run: what a process sends at once is close together in time.

    Attributes:
        number: The commit's.
        server: Who commits, as `Log.server` says.
        first: The earliest time of a point, and `last` the latest.
        series: Which have points.
        described: Of these, those that no sum was known of.
        claimed_from: Open commits that were to write some of the points as well.
        claimed: Those points.
    """

    number: int
    run: int
    server: int
    first: int
    last: int
    series: Collection[int]
    described: Mapping[int, Description] = field(default_factory=dict)
    claimed_from: Collection[int] = ()
    claimed: Times = field(default_factory=dict)


class Intents:
    """Writes this server's intents, and reads those of all. For any number of threads, but one commit at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._finished = 0
        self._since = 0

    def declare(self, intents: Sequence[Intent]) -> None:
        """Tell what a commit is about to write, and that the one before is over."""
        self._write([_row(one, self._finished) for one in intents])
        self._finished = 0

    def finish(self, number: int) -> None:
        """Mark the commit as finished; the next declaration includes this."""
        self._finished = number

    def tell(self) -> None:
        """Tell what `finish` left to be told."""
        if self._finished:
            self.close(self._finished)
            self._finished = 0

    def close(self, number: int) -> None:
        """Tell that a commit is over."""
        self._write([_row(Intent(0, 0, 0, 0, 0, ()), number)])

    def open(self, runs: Collection[int], first: int, last: int) -> list[Intent]:
        """What open commits are about to write for these runs between two times; without what they claim.

        Whoever reads sums as well does so afterwards: what is not open any more is in them.
        """
        rows = self._connection.rows(
            f"SELECT number, run, server, first, last, series FROM intent WHERE {self._lately()} AND run IN ({numbers(runs)})"
            f" AND first <= {last} AND last >= {first} AND number != {self._finished} AND {self._not_over()}"
        )
        return [Intent(*row) for row in rows]

    def all_open(self) -> tuple[int, list[tuple[int, int, int]]]:
        """ClickHouse's clock, and of each open commit number, server and since when, in seconds."""
        now = self._connection.rows("SELECT toUnixTimestamp(now())")[0][0]
        rows = self._connection.rows(
            "SELECT number, any(server), toUnixTimestamp(min(received)) FROM intent"
            f" WHERE {self._lately()} AND run != 0 AND {self._not_over()} GROUP BY number ORDER BY number"
        )
        return now, [(number, server, received) for number, server, received in rows]

    def of(self, number: int) -> list[Intent]:
        """Everything that a commit has declared."""
        rows = self._connection.rows(
            "SELECT run, server, first, last, series, described, claimed_from, claimed_series, claimed_time FROM intent"
            f" WHERE {self._lately()} AND number = {number}"
        )
        return [
            Intent(
                *(number, run, server, first, last, series),
                described={int(key): Description(*said) for key, said in json.loads(described or "{}").items()},
                claimed_from=claimed_from,
                claimed=_by_series([claimed]),
            )
            for run, server, first, last, series, described, claimed_from, *claimed in rows
        ]

    def claims(self, number: int) -> Times:
        """Points that others have claimed from a commit."""
        rows = self._connection.rows(
            f"SELECT claimed_series, claimed_time FROM intent WHERE {self._lately()} AND has(claimed_from, {number})"
        )
        return _by_series(rows)

    def forget_before(self, time: int) -> None:
        """No commit that began before this time, in seconds of ClickHouse's clock, is open."""
        self._since = max(self._since, time - _MARGIN)

    def _lately(self) -> str:
        return f"received >= toDateTime({self._since})"

    def _not_over(self) -> str:
        return f"number GLOBAL NOT IN (SELECT over FROM intent WHERE {self._lately()})"

    def _write(self, rows: Iterable[Sequence[object]]) -> None:
        self._connection.insert("intent", _COLUMNS, encode_rows(_COLUMNS, rows))


def _row(intent: Intent, over: int) -> list[object]:
    claimed = {key: times for key, times in intent.claimed.items() if len(times)}
    keys = [np.full(len(times), key, np.uint64) for key, times in claimed.items()]
    return [
        *(intent.number, intent.run, intent.server, over, intent.first, intent.last),
        *(np.array(sorted(intent.series), np.uint64), json.dumps(intent.described) if intent.described else ""),
        *(np.array(sorted(intent.claimed_from), np.uint64), np.concatenate([_NONE, *keys])),
        np.concatenate([np.empty(0, np.int64), *claimed.values()]),
    ]


def _by_series(rows: Iterable[Sequence[Sequence[int]]]) -> Times:
    found: dict[int, list[int]] = defaultdict(list)
    for keys, times in rows:
        for key, time in zip(keys, times, strict=True):
            found[key].append(time)
    return {key: np.array(times, np.int64) for key, times in found.items()}
