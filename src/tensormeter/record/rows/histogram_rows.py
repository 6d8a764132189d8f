"""Rows with distributions in them, beside plain numbers.

They are rare and large, so they take the slow path: what the row holds is put together first, then written by one call.

Counts on a CUDA device go into the row like this: the row is written, its statistics being `PENDING`; then, on the stream that
counted, come two copies: first the counts of all distributions, then the statistics.
A stream's copies are done one after the other, and what a device writes to the host's memory becomes visible in the order in
which it is written. So who sees the statistics complete sees the counts complete, and the counts need no sentinel, of which
there could be none: every pattern of bits is a count.
From MPS and XPU devices both go to the host, and the log call that finds them there stores them in the same order.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from tensormeter.record.device.device_copies import DeviceCopies, place
from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.histogram.histogram import CountedOnDevice, DeviceDistribution, HostDistribution
from tensormeter.record.rows.lane import Lane
from tensormeter.record.values.classify import Deferred, DeviceValue, kind_of
from tensormeter.ring.format import PENDING
from tensormeter.ring.histogram_buckets import EXPLICIT, KIND, STATISTICS_WORDS, Table
from tensormeter.ring.layout import Column, Layout, Stream, row_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Distribution", "Distributions", "HistogramRows"]

Distribution = HostDistribution | DeviceDistribution | CountedOnDevice
Distributions = Mapping[str, Distribution]

_PENDING: Final = struct.pack("<q", PENDING)

_LARGEST_SHARE: Final = 4
"""A row takes at most such a part of its lane, so that a lane that is drained a little has room for the next."""


class HistogramRows:
    """Writes rows of one ring. Thread-safe as far as the lanes are."""

    def __init__(
        self,
        device: DeviceCopies,
        tables: DeviceTables,
        find_layout: Callable[[Sequence[Column]], Layout | None],
        lose: Callable[[Lane, Exception, int], None],
    ) -> None:
        """
        Args:
            device: For the copies of device values.
            tables: For counting on devices.
            find_layout: Gives the layout of such columns, or None if there can be no more.
            lose: Called with the lane, with what a device says when it refuses, and with the number of values that are not in
                the row then.
        """
        self._device = device
        self._find_layout = find_layout
        self._lose = lose
        self._tables = tables

    def split(self, lane: Lane, numbers: int, distributions: Distributions) -> Iterator[dict[str, Distribution]]:
        """The distributions in groups that each fit a row, if the first also has so many other values."""
        group: dict[str, Distribution] = {}
        words = numbers
        for name, distribution in distributions.items():
            more = _words_of(distribution)
            if group and row_bytes(words + more) > lane.size // _LARGEST_SHARE:
                yield group
                group, words = {}, 0
            group[name] = distribution
            words += more
        yield group

    def write(
        self,
        lane: Lane,
        numbers: Mapping[str, float | int],
        devices: Mapping[str, DeviceValue | Deferred],
        distributions: Distributions,
        step: int,
    ) -> bool | None:
        """Write one row, and launch what it takes to fill it.

        Returns:
            Whether there was room; None if there can be no such row.
        """
        columns: list[Column] = []
        words = bytearray()
        for name, number in numbers.items():
            code = "q" if kind_of(number) == "q" else "d"
            columns.append(Column(Stream(name), code))
            words += struct.pack(f"<{code}", number)
        for name, distribution in distributions.items():
            if isinstance(distribution, HostDistribution):
                stream = Stream(name, KIND)
                columns.append(Column(stream, distribution.code, len(distribution.words) // 8))
                words += distribution.words
                if distribution.statistics is not None:
                    columns.append(Column(stream, "d", STATISTICS_WORDS))
                    words += struct.pack(f"<{STATISTICS_WORDS}d", *distribution.statistics)
        counting = _runs({n: d for n, d in distributions.items() if not isinstance(d, HostDistribution)})
        counts_at = len(words) // 8
        for table, run in counting:
            for name in run:
                columns.append(Column(Stream(name, KIND), table.code, table.words))
                words += bytes(8 * table.words)
        statistics_at = len(words) // 8
        for _, run in counting:
            columns += [Column(Stream(name, KIND), "D", STATISTICS_WORDS) for name in run]
            words += _PENDING * STATISTICS_WORDS * len(run)
        scalars_at = len(words) // 8
        ordered = sorted(devices.items(), key=lambda item: place(item[1]))
        columns += [Column(Stream(name), "D") for name, _ in ordered]
        words += _PENDING * len(ordered)
        if row_bytes(len(words) // 8) > lane.size:
            return None
        layout = self._find_layout(columns)
        if layout is None:
            return None
        try:  # before there is a row to fill, for this is what may fail: there may be no memory for it
            counted = [self._counts(run, table) for table, run in counting]
        except Exception as error:
            rest = {name: d for name, d in distributions.items() if isinstance(d, HostDistribution)}
            self._lose(lane, error, len(distributions) - len(rest))
            return self.write(lane, numbers, devices, rest, step) if numbers or devices or rest else True
        word = lane.write_words(layout, bytes(words), step)
        if word is None:
            return False
        try:
            self._device.copy_distributions(word + counts_at, word + statistics_at, counted)
            if ordered:
                self._device.copy(word + scalars_at, [value for _, value in ordered])
        except BaseException as error:
            self._device.give_up(word + statistics_at, len(words) // 8 - statistics_at)
            if not isinstance(error, Exception):
                raise
            self._lose(lane, error, 0)  # the reader counts them
        return True

    def _counts(self, run: "_Run", table: Table) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Counts and statistics of a run, one after the other; counted now, unless they were before."""
        import torch

        tensors = [found.tensor for found in run.values() if isinstance(found, DeviceDistribution)]
        if tensors:
            return self._tables.count(tensors, table)
        before = [found for found in run.values() if isinstance(found, CountedOnDevice)]
        with torch.inference_mode(mode=False):
            return torch.cat([found.counts for found in before]), torch.cat([found.statistics for found in before])


_Run = Mapping[str, DeviceDistribution | CountedOnDevice]
"""Distributions of one kind on one device in one table: what is counted and copied together."""


def _words_of(distribution: Distribution) -> int:
    if not isinstance(distribution, HostDistribution):
        return distribution.table.words + STATISTICS_WORDS
    return len(distribution.words) // 8 + (0 if distribution.code == EXPLICIT else STATISTICS_WORDS)


def _runs(distributions: "_Run") -> list[tuple[Table, "_Run"]]:
    def key(item: tuple[str, DeviceDistribution | CountedOnDevice]) -> tuple[bool, str, str]:
        found = item[1]
        if isinstance(found, DeviceDistribution):
            return False, str(found.tensor.device), found.table.code
        return True, str(found.counts.device), found.table.code

    return [
        (items[0][1].table, dict(items))
        for _, group in groupby(sorted(distributions.items(), key=key), key)
        if (items := list(group))
    ]
