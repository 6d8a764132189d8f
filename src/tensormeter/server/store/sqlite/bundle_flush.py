"""The part of a flush that concerns a group of short series: their points become bundles, and young bundles are merged.

The youngest bundles of a group are merged into the new one, until a bundle has more points than the new one. If the new
bundle is full, the points of its longer series become segments.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.sqlite.points.bundles import (
    BUNDLE_COLUMNS,
    GROUP,
    Bundle,
    BundleRow,
    bundle_directory,
    encode_bundle,
    parse_bundle,
)
from tensormeter.server.store.sqlite.points.number_parts import SortedNumbers
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup
from tensormeter.server.store.sqlite.series_flush import SeriesFlush, SeriesSegments, flush_of
from tensormeter.server.store.sqlite.transaction import CHANGED

__all__ = ["BundledLookup", "GroupFlush", "plan_group"]

_FULL: Final = 65_536
"""Number of points from which on a bundle is full. Its points take a MiB and are decoded in a few milliseconds."""

_LONG: Final = 64
"""Number of points from which on a series leaves a full bundle."""

Report = Callable[[DamagedError], None]


@dataclass(frozen=True)
class GroupFlush:
    """Changes to the bundles of one group in a flush.

    Attributes:
        first: Sequence number of the first new bundle. The new bundles replace all old bundles from this number on.
        rows: New bundles.
        directory: Checksum of the complete list of bundles after the flush.
        fresh: Number of points that were not in the file before, by run.
        moved: Series whose points move from bundles to segments.
    """

    group: int
    first: int
    rows: Sequence[BundleRow]
    directory: int
    fresh: Mapping[int, int]
    moved: Sequence[SeriesFlush] = field(default=())


def plan_group(
    connection: sqlite3.Connection,
    steps: StepLookup,
    group: int,
    points: SortedNumbers,
    runs: NDArray[np.int64],
    report: Report,
) -> GroupFlush:
    """Plan the flush of the points of one group. Writes nothing.

    Args:
        connection: Connection to read with.
        steps: Lookup of steps, as of the flush.
        group: Group of the series.
        points: Points with distinct times in ascending order within each series.
        runs: int64: row ID of each series' run.
        report: Function called with the error for each damaged part.
    """
    bundles = _GroupBundles(connection, group, report)
    fresh = _absent(connection, bundles, points, report)
    first = bundles.spans[-1][0] + 1 if bundles.spans else 0
    parts, total = [fresh], len(fresh.all)
    for span in reversed(bundles.spans) if total else ():
        bundle = bundles.bundle(span[0]) if span[1] <= total else None
        if bundle is None:
            break
        parts.insert(0, bundle.numbers())
        first, total = span[0], total + span[1]
    merged = SortedNumbers.distinct(parts) if len(parts) > 1 else fresh
    moved: list[SeriesFlush] = []
    if len(merged.all) >= _FULL:
        is_long = np.diff(merged.starts) >= _LONG
        moved = _move(connection, steps, merged, np.flatnonzero(is_long).tolist(), report)
        merged = merged.select(np.repeat(~is_long, np.diff(merged.starts)))
    rows = [encode_bundle(group, first, merged)] if len(merged.all) else []
    added: Counter[int] = Counter()
    places = np.searchsorted(points.series, fresh.series)
    for run, n in zip(runs[places].tolist(), np.diff(fresh.starts).tolist(), strict=True):
        added[run] += n
    return GroupFlush(group, first, rows, bundles.directory(first, rows), added, moved)


class BundledLookup:
    """Lookup of a series' points in bundles, which keeps the last group."""

    def __init__(self, connection: sqlite3.Connection, report: Report) -> None:
        self._connection = connection
        self._report = report
        self._bundles: _GroupBundles | None = None

    def points(self, series: int) -> Points | None:
        """Return the points of a series in undamaged bundles, or None."""
        if self._bundles is None or self._bundles.group != series // GROUP:
            self._bundles = _GroupBundles(self._connection, series // GROUP, self._report)
        parts = []
        for span in self._bundles.spans:
            bundle = self._bundles.bundle(span[0])
            index = -1 if bundle is None else bundle.index(series)
            if bundle is not None and index >= 0:
                parts.append(bundle.points_at(index))
        return Points.concat(parts) if parts else None


class _GroupBundles:
    """The undamaged bundles of one group, each read at most once.

    Attributes:
        spans: (seq, n, t_min, t_max) of each bundle, in order of arrival.
    """

    def __init__(self, connection: sqlite3.Connection, group: int, report: Report) -> None:
        self.group = group
        self._connection = connection
        self._report = report
        self._read: dict[int, Bundle | None] = {}
        self.spans: list[tuple[int, int, int, int]] = connection.execute(
            "SELECT seq, n, t_min, t_max FROM bundle WHERE grp = ? ORDER BY seq", (group,)
        ).fetchall()
        row = connection.execute("SELECT directory FROM bundle_group WHERE id = ?", (group,)).fetchone()
        stored = bundle_directory(group, ()) if row is None else row[0]
        self._damage = stored ^ bundle_directory(group, self.spans)
        if self._damage:
            report(DamagedError(f"group {group} of series: its list of bundles does not match the checksum"))

    def bundle(self, seq: int) -> Bundle | None:
        """Return a bundle with decoded points, or None after reporting that it is damaged."""
        if seq not in self._read:
            self._read[seq] = self._bundle(seq)
        return self._read[seq]

    def directory(self, first: int, added: Sequence[BundleRow]) -> int:
        """Return the checksum of the list of bundles after replacing those from `first` on.

        If the current list does not match its checksum, the new list will not match the new one either.
        """
        kept = [span for span in self.spans if span[0] < first]
        return bundle_directory(self.group, kept + [row[1:5] for row in added]) ^ self._damage

    def _bundle(self, seq: int) -> Bundle | None:
        try:
            row = self._connection.execute(
                f"SELECT {BUNDLE_COLUMNS} FROM bundle WHERE grp = ? AND seq = ?", (self.group, seq)
            ).fetchone()
            bundle = parse_bundle(row)
            if (bundle.seq, bundle.n, bundle.t_min, bundle.t_max) not in self.spans:
                raise DamagedError(f"bundle {seq} of group {self.group}: its row does not match the SQLite index")
            bundle.numbers()
        except DamagedError as error:
            self._report(error)
            return None
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, *CHANGED) as error:
            damaged = DamagedError(f"bundle {seq} of group {self.group}: {error}")
            damaged.__cause__ = error
            self._report(damaged)
            return None
        return bundle


def _absent(
    connection: sqlite3.Connection, bundles: _GroupBundles, points: SortedNumbers, report: Report
) -> SortedNumbers:
    """Return the points that neither a bundle nor a segment contains."""
    start, stop = int(points.all.times.min()), int(points.all.times.max())
    fresh = np.ones(len(points.all), np.bool_)
    for seq, _, t_min, t_max in bundles.spans:
        bundle = bundles.bundle(seq) if t_max >= start and t_min <= stop else None
        if bundle is None:
            continue
        doubtful = np.flatnonzero(np.isin(points.all.times, bundle.points.times))
        if len(doubtful):
            stored = bundle.numbers()
            pairs, known = (
                np.stack([owners, times], 1).view("i8,i8").reshape(-1)
                for owners, times in (
                    (points.owners[doubtful], points.all.times[doubtful]),
                    (stored.owners, stored.all.times),
                )
            )
            fresh[doubtful[np.isin(pairs, known)]] = False
    rows = connection.execute(
        "SELECT id FROM series WHERE id >= ? AND id < ? AND last_time >= ?",
        (bundles.group * GROUP, (bundles.group + 1) * GROUP, start),
    ).fetchall()
    for (series,) in rows:
        place = int(np.searchsorted(points.series, series))
        if place < len(points.series) and points.series[place] == series:
            first, last = points.starts[place : place + 2].tolist()
            mine = points.all[first:last]
            kept = SeriesSegments(connection, series, Points, report).absent(mine)
            fresh[first:last] &= np.isin(mine.times, kept.times)
    return points if fresh.all() else points.select(fresh)


def _move(
    connection: sqlite3.Connection, steps: StepLookup, points: SortedNumbers, places: Sequence[int], report: Report
) -> list[SeriesFlush]:
    """Plan segments for some series of a full bundle."""
    moved = []
    for place in places:
        series = int(points.series[place])
        owner = connection.execute(
            "SELECT run, process.id, metric FROM series JOIN process ON process.id = series.process WHERE series.id = ?",
            (series,),
        ).fetchone()
        segments = SeriesSegments(connection, series, Points, report)
        mine = points.all[points.starts[place] : points.starts[place + 1]]
        moved.append(flush_of(segments, steps, owner, mine, 0))
    return moved
