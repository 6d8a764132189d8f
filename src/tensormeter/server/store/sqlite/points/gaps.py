"""Gaps: times at which a sender reported that a series of numbers has no value. Charts interrupt the line there.

Gaps are not points, so reads of values do not return gaps. If a series has no points yet, its gaps are dropped.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.rules.gaps import MAX_GAPS, gap_times
from tensormeter.server.store.rules.ingest_series import Arrival
from tensormeter.server.store.sqlite.integrity.seals import checksum, verify

__all__ = ["has_new_gaps", "insert_gaps", "read_gaps"]


_LAST: Final = (1 << 63) - 1

_FIND: Final = (
    "SELECT series.id FROM run JOIN process ON process.run = run.id"
    " JOIN series ON series.process = process.id WHERE project = ? AND run_id = ? AND NOT deleted AND process.process = ?"
    " AND metric = ? AND series.kind = ? AND scope = ? AND attributes = ?"
)
_TRIM: Final = (
    "DELETE FROM gap WHERE series = :series"
    f" AND time < (SELECT time FROM gap WHERE series = :series ORDER BY time DESC LIMIT 1 OFFSET {MAX_GAPS - 1})"
)


def insert_gaps(connection: sqlite3.Connection, gaps: Iterable[Arrival], seq: int, check: Check = no_check) -> None:
    """Store gaps of existing series. The caller's transaction must be rolled back if `check` raises.

    Args:
        connection: Connection to write with.
        gaps: Gaps; see `gaps_of`.
        seq: Number of the journal row that contains the gaps; if none does, number of the next journal row.
        check: Function called for each series.
    """
    for gap in gaps:
        check()
        source = gap.source
        names = (source.project, source.run_id, source.process, gap.metric, gap.kind, gap.scope, gap.attributes)
        series_row = connection.execute(_FIND, names).fetchone()
        if series_row is not None:
            rows = ((series_row[0], time, seq, checksum(series_row[0], time, seq)) for time in gap_times(gap).tolist())
            connection.executemany("INSERT OR IGNORE INTO gap (series, time, seq, seal) VALUES (?, ?, ?, ?)", rows)
            connection.execute(_TRIM, {"series": series_row[0]})


def has_new_gaps(connection: sqlite3.Connection, series: Iterable[int], after: int) -> bool:
    """Return whether any of these series has gaps that arrived after the journal row with number `after`."""
    series_json = json.dumps([*series])
    result = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM gap WHERE seq > ? AND series IN (SELECT value FROM json_each(?)))",
        (min(after, _LAST), series_json),
    )
    return bool(result.fetchone()[0])


def read_gaps(
    connection: sqlite3.Connection, series: Iterable[int], start: int | None, stop: int | None, most: int
) -> Mapping[int, NDArray[np.int64]]:
    """Return the times of gaps with start <= time < stop, ascending, by series.

    Up to `most` gaps are returned in total, plus one if there are more.
    """
    first, last = max(start or 0, 0), _LAST if stop is None else max(min(stop, _LAST), 0)
    rows = connection.execute(
        "SELECT series, time, seq, seal FROM json_each(?) JOIN gap ON gap.series = json_each.value WHERE time >= ? AND time < ?"
        " ORDER BY series, time LIMIT ?",
        (json.dumps([*series]), min(first, _LAST), last, max(most, 0) + 1),
    ).fetchall()
    if not rows:
        return {}
    for row_series, time, seq, seal in rows:
        verify(f"a gap of series {row_series}", seal, row_series, time, seq, series=row_series)
    keys, times = np.array([row[:2] for row in rows], np.int64).T
    edges = np.flatnonzero(np.diff(keys)) + 1
    return {int(key): part for key, part in zip(keys[np.r_[0, edges]], np.split(times, edges), strict=True)}
