"""Sums of commits that have died between their points and the sums about them.

What such a commit has written is found by its number, which its points bear, and counted as it would have counted it. Only one insert
of a commit's sums takes effect, whoever makes it: the commit itself, late, or several servers that count at the same time. ClickHouse
knows it again by a token. If it dies after it has noted the token and before it has kept the rows, it would refuse them for ever; so
rows bring a mark of their own, and where that is not to be seen afterwards, they go in again under another token.
"""

import time
from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.intents import Description, Intent, Intents, Times
from tensormeter.server.store.clickhouse.keys import invert
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.clickhouse.run_reader import numbers
from tensormeter.server.store.clickhouse.series_batch import SERIES_COLUMNS, SeriesBatch, mark, series_rows
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.rules.resource_identity import Source

__all__ = ["RECOUNT_AFTER", "Recount"]

RECOUNT_AFTER: Final = 120.0
"""Seconds after which an open commit is taken for dead: more than `commit.MOST_SECONDS` and the 60 of its last insert."""

_INTERVAL: Final = 60.0
_TOKENS: Final = 20
_ROW: Final = np.dtype([("series", "<u8"), ("time", "<i8"), ("word", "<i8"), ("integer", "u1"), ("precedence", "<u8")])


class Recount:
    """Counts what dead commits have left uncounted. For one thread."""

    def __init__(self, connection: Connection, intents: Intents) -> None:
        self._connection = connection
        self._intents = intents
        self._after = RECOUNT_AFTER
        self._due = 0.0
        engine = connection.rows(
            "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = 'series'"
        )
        # Others keep token and rows in one transaction, but may show them late.
        self._shows_marks = engine == [["AggregatingMergeTree"]]

    def run_if_due(self) -> bool:
        """As `run`, but once a minute."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + _INTERVAL
        return self.run()

    def run(self) -> bool:
        """Count; returns whether something may have become visible.

        Raises:
            StoreUnavailableError: Of some commit. The others are counted.
        """
        now, listed = self._intents.all_open()
        oldest = now
        found = False
        problem: StoreUnavailableError | None = None
        for number, server, since in listed:
            if since + self._after > now:
                oldest = min(oldest, since)
                continue
            try:
                found |= self._settle(number, server)
            except StoreUnavailableError as error:
                oldest = min(oldest, since)
                problem = error
        self._intents.forget_before(oldest)
        if problem is not None:
            raise problem
        return found

    def _settle(self, number: int, server: int) -> bool:
        found = False
        if not self._counted(number, server):
            rows = series_rows(list(self._written(number)))
            found = bool(rows)
            encoded = encode_rows(SERIES_COLUMNS, [*rows, mark(server, number)])
            for attempt in range(_TOKENS):
                token = f"{number}-{attempt}" if attempt else f"{number}"
                self._connection.insert("series", SERIES_COLUMNS, encoded, token=token)
                if not self._shows_marks or self._counted(number, server):
                    break
            else:
                raise StoreUnavailableError(f"ClickHouse does not keep the sums of commit {number}")
        self._intents.close(number)
        return found

    def _counted(self, number: int, server: int) -> bool:
        if not self._shows_marks:
            return False
        rows = self._connection.rows(
            f"SELECT max(tupleElement(last, 1)) >= {number} FROM series WHERE run = 0 AND series = {server}"
        )
        return bool(rows[0][0])

    def _written(self, number: int) -> Iterator[SeriesBatch]:
        """What a commit has to count, series by series."""
        intents = self._intents.of(number)
        claims = self._intents.claims(number)
        gone = self._connection.rows(
            f"SELECT DISTINCT run FROM deleted WHERE run IN ({numbers({intent.run for intent in intents})})"
        )
        for intent in intents:
            if [intent.run] not in gone:
                yield from self._written_for(intent, claims)

    def _written_for(self, intent: Intent, claims: Times) -> Iterator[SeriesBatch]:
        described = self._describe(intent)
        for numeric in (True, False):
            keys = [key for key, said in described.items() if parse_kind(said[2]).numeric == numeric]
            if keys:
                rows = self._rows(intent, keys, numeric=numeric)
                for key in keys:
                    points = _points(rows[rows["series"] == key], intent, numeric=numeric)
                    points = points[~np.isin(points.times, claims.get(key, ()))]
                    if len(points):
                        yield _incoming(intent.run, key, described[key], points)

    def _describe(self, intent: Intent) -> dict[int, Description]:
        rows = self._connection.rows(
            "SELECT series, metric, anyLast(process), anyLast(kind), anyLast(scope), anyLast(attributes), anyLast(unit),"
            f" anyLast(description) FROM series WHERE run = {intent.run} AND series IN ({numbers(intent.series)})"
            " GROUP BY series, metric"
        )
        return {**intent.described, **{row[0]: Description(*row[1:]) for row in rows}}

    def _rows(self, intent: Intent, keys: Collection[int], *, numeric: bool) -> NDArray[Any]:
        where = (
            f"run = {intent.run} AND series IN ({numbers(keys)}) AND time BETWEEN"
            f" fromUnixTimestamp64Nano({intent.first}, 'UTC') AND fromUnixTimestamp64Nano({intent.last}, 'UTC')"
        )
        if not intent.claimed:  # else a point that this commit counts may stand there as another's
            where += f" AND precedence = {invert(intent.number)}"
        values = "word, integer" if numeric else "toInt64(0) AS word, true AS integer"
        return self._connection.columns(
            f"SELECT series, time, {values}, precedence FROM {'points' if numeric else 'distributions'} WHERE {where}"
            " ORDER BY series, time, precedence DESC",
            _ROW,
        )


def _points(rows: NDArray[Any], intent: Intent, *, numeric: bool) -> Column:
    """Of a series' rows those that a commit wrote, or has claimed from others."""
    ours = rows["precedence"] == np.uint64(invert(intent.number))
    if intent.claimed and len(rows):
        ours |= np.isin(rows["time"], intent.claimed.get(int(rows["series"][0]), ()))
    rows = rows[ours]
    times = np.ascontiguousarray(rows["time"])
    if not numeric:
        return Blobs.of(times, [b""] * len(times)).distinct()
    words = np.ascontiguousarray(rows["word"])
    return Points(times, words, np.ascontiguousarray(rows["integer"]).view(np.bool_)).distinct()


def _incoming(run: int, key: int, said: Description, points: Column) -> SeriesBatch:
    source = Source("", "", "", said.process, "")
    about = (said.metric, said.kind, said.scope, said.attributes, said.unit, said.description)
    return SeriesBatch(run, key, Arrival(source, *about, points), [points], points=points)
