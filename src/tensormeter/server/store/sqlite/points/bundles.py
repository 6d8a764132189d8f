"""Bundles: rows that contain the points of up to 256 series of runs with many series.

A segment for a few points of one series would take more room and time than the points. A group is a range of 256 row IDs of series.
A bundle contains points of the series of one group, sorted by series and time, and a head for each series, so that counts and
last values are read without the points. A group has few bundles, because a flush merges the youngest ones, as with segments. When
they are full, the points of their long series move to segments. A point is either in a bundle or in a segment, never in both.
"""

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from zlib import crc32

import numpy as np
import zstandard
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.integrity.seals import checksum, verify
from tensormeter.server.store.sqlite.points.number_parts import SortedNumbers
from tensormeter.server.store.sqlite.points.segments import compress_words, decompress_words, inflate

__all__ = [
    "BUNDLE_COLUMNS",
    "GROUP",
    "Bundle",
    "BundleRow",
    "Heads",
    "bundle_directory",
    "encode_bundle",
    "group_of",
    "insert_bundles",
    "parse_bundle",
    "read_bundles",
    "update_bundle_directory",
]

GROUP: Final = 256
"""Number of row IDs of series in a group."""

BUNDLE_COLUMNS: Final = "grp, seq, n, t_min, t_max, heads, times, words, integers, seal"
"""Columns that `parse_bundle` expects."""

BundleRow = tuple[int, int, int, int, int, bytes, bytes, bytes, bytes, int | None]

_HEAD: Final = 9


def group_of(series: int) -> int:
    """Return the group of a series."""
    return series // GROUP


@dataclass(frozen=True, eq=False)
class Heads:
    """Counts, statistics and last points of the series in a bundle, as columns of length n.

    Attributes:
        series: int64: row IDs, ascending and distinct.
        counts: int64: number of points.
        numbers: int64: number of points that are not NaN.
        totals, minima, maxima: float64: statistics of these points.
        last_times, last_words, last_integers: int64: latest point.
    """

    series: NDArray[np.int64]
    counts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    totals: NDArray[np.float64]
    minima: NDArray[np.float64]
    maxima: NDArray[np.float64]
    last_times: NDArray[np.int64]
    last_words: NDArray[np.int64]
    last_integers: NDArray[np.int64]

    @classmethod
    def of(cls, points: SortedNumbers) -> "Heads":
        """Return the heads of points."""
        last = points.newest
        counts, numbers, totals, minima, maxima = points.statistics
        times, words, integers = (column[last] for column in points.all.arrays())
        return cls(points.series, counts, numbers, totals, minima, maxima, times, words, integers.astype(np.int64))

    @classmethod
    def decode(cls, blob: bytes) -> "Heads":
        """Decode heads from `encode`. Raises DamagedError."""
        columns = np.frombuffer(decompress_words(blob), np.int64)
        if len(columns) % _HEAD or not len(columns):
            raise DamagedError("a bundle: its heads have the wrong size")
        columns = columns.reshape(_HEAD, -1)
        return cls(*columns[:3], *columns[3:6].view(np.float64), *columns[6:])

    def totals_at(self, index: int) -> Totals:
        """Return the totals of the series with this index, without its last step."""
        count, numbers, total, minimum, maximum, last_time, last_word, last_integer = (
            column[index] for column in self._lists
        )
        if not numbers:
            minimum = maximum = math.nan
        return Totals(count, numbers, total, minimum, maximum, last_time, last_word, bool(last_integer))

    @cached_property
    def _lists(self) -> list[list[Any]]:
        """The columns after `series`, as lists, from which single values are read faster."""
        statistics = self.counts, self.numbers, self.totals, self.minima, self.maxima
        return [column.tolist() for column in (*statistics, self.last_times, self.last_words, self.last_integers)]

    def encode(self) -> bytes:
        """Encode the heads."""
        floats = (column.view(np.int64) for column in (self.totals, self.minima, self.maxima))
        last = (self.last_times, self.last_words, self.last_integers)
        return compress_words(np.stack([self.series, self.counts, self.numbers, *floats, *last]))


class Bundle:
    """A bundle that was read, whose points are decoded on demand. For use by one thread.

    Attributes:
        group: Group of the series.
        seq: Order within the group.
        n: Number of points.
        t_min: Earliest time, in nanoseconds since the Unix epoch.
        t_max: Latest time, in nanoseconds since the Unix epoch.
        heads: Heads of the series.
    """

    def __init__(self, row: BundleRow) -> None:
        """Decode the heads. Raises DamagedError."""
        self.group, self.seq, self.n, self.t_min, self.t_max = row[:5]
        self.heads = Heads.decode(row[5])
        self._starts = np.concatenate([[0], np.cumsum(self.heads.counts)])
        if self._starts[-1] != self.n or self.heads.series[0] // GROUP != self.group:
            raise DamagedError(f"bundle {self.seq} of group {self.group}: its heads do not match its row")
        self._places = {series: index for index, series in enumerate(self.heads.series.tolist())}
        self._blobs = row[6:9]
        self._points: Points | None = None

    def index(self, series: int) -> int:
        """Return the index of a series in the heads, or -1."""
        return self._places.get(series, -1)

    def points_at(self, index: int) -> Points:
        """Return the points of the series with this index. Raises DamagedError."""
        return self.points[self._starts[index] : self._starts[index + 1]]

    def numbers(self) -> SortedNumbers:
        """Return all points. Raises DamagedError."""
        return SortedNumbers(self.heads.series, self._starts, self.points)

    @property
    def points(self) -> Points:
        """All points, sorted by series and time. Raises DamagedError."""
        if self._points is None:
            times, words, integers = self._blobs
            columns = [np.frombuffer(decompress_words(blob), np.int64) for blob in (times, words)]
            packed = np.frombuffer(inflate(integers, (self.n + 7) // 8), np.uint8)
            if {len(column) for column in columns} != {self.n}:
                raise DamagedError(f"bundle {self.seq} of group {self.group}: its points have the wrong size")
            self._points = Points(np.cumsum(columns[0]), columns[1], np.unpackbits(packed, count=self.n).view(np.bool_))
        return self._points


def encode_bundle(group: int, seq: int, points: SortedNumbers) -> BundleRow:
    """Encode points of one group as a row without a seal."""
    times = points.all.times
    return (
        *(group, seq, len(times), int(times.min()), int(times.max())),
        Heads.of(points).encode(),
        compress_words(np.diff(times, prepend=np.int64(0))),
        compress_words(points.all.words),
        zstandard.compress(np.packbits(points.all.integers).tobytes(), 1),
        None,
    )


def parse_bundle(row: Sequence[object]) -> Bundle:
    """Create a bundle from the columns `BUNDLE_COLUMNS`.

    Raises:
        DamagedError: The row has changed since it was written.
    """
    *columns, seal = row
    verify(f"bundle {row[1]} of group {row[0]}", seal, *columns)  # type: ignore[arg-type]
    return Bundle((*columns, None))  # type: ignore[arg-type]


def insert_bundles(connection: sqlite3.Connection, rows: Iterable[BundleRow]) -> None:
    """Write bundles inside the caller's transaction. The caller updates the directories."""
    connection.executemany(
        f"INSERT INTO bundle ({BUNDLE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*row[:-1], checksum(*row[:-1])) for row in rows],
    )


def read_bundles(connection: sqlite3.Connection, group: int) -> list[Bundle]:
    """Read a group's bundles, in order of arrival.

    Raises:
        DamagedError: A bundle is missing or damaged.
    """
    rows = connection.execute(f"SELECT {BUNDLE_COLUMNS} FROM bundle WHERE grp = ? ORDER BY seq", (group,)).fetchall()
    directory = connection.execute("SELECT directory FROM bundle_group WHERE id = ?", (group,)).fetchone()
    if directory is None and not rows:
        return []
    if directory is None or directory[0] != bundle_directory(group, (row[1:5] for row in rows)):
        raise DamagedError(f"group {group} of series: its list of bundles does not match the checksum")
    return [parse_bundle(row) for row in rows]


def bundle_directory(group: int, rows: Iterable[Sequence[int]]) -> int:
    """Return the checksum of a group's list of bundles, given as (seq, n, t_min, t_max) in ascending order of seq."""
    return crc32(repr((group, [tuple(row) for row in rows])).encode())


def update_bundle_directory(connection: sqlite3.Connection, groups: Iterable[int]) -> None:
    """Update the checksums of lists of bundles inside the caller's transaction."""
    for group in groups:
        rows = connection.execute(
            "SELECT seq, n, t_min, t_max FROM bundle WHERE grp = ? ORDER BY seq", (group,)
        ).fetchall()
        if rows:
            connection.execute(
                "INSERT OR REPLACE INTO bundle_group (id, directory) VALUES (?, ?)",
                (group, bundle_directory(group, rows)),
            )
        else:
            connection.execute("DELETE FROM bundle_group WHERE id = ?", (group,))
