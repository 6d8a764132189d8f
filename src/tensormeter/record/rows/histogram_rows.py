"""Writing of rows with distributions. Such rows may also contain plain numbers and device values.

These rows are rare and large, so they use a slower path, which assembles the row's words before it writes them in one call.

For distributions on a CUDA device, the row is written with its statistics set to `PENDING`. Then two copies are launched on the
stream that counted the values: first the counts of all distributions, then their statistics. Copies on the same stream complete
in order, and a device's stores become visible to the host in order. Once the statistics have arrived, the counts have also
arrived. The counts therefore need no `PENDING` placeholder. A placeholder is also impossible, because every bit pattern is
a valid count.

MPS and XPU devices copy counts and statistics to host tensors. The log call that detects their arrival stores them in the ring
in the same order.
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
from tensormeter.ring.layout import Column, Items, Layout, Stream, items_bytes, row_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Distribution", "Distributions", "HistogramRows"]

Distribution = HostDistribution | DeviceDistribution | CountedOnDevice
Distributions = Mapping[str, Distribution]

_PENDING: Final = struct.pack("<q", PENDING)

_LARGEST_SHARE: Final = 4
"""Number by which a lane's size is divided to get the maximum size of a row with several distributions. Such a row fits as soon
as the reader has read some of the earlier rows."""


class HistogramRows:
    """Writes rows with distributions to one ring. Threads may use it at the same time if they write to different lanes."""

    def __init__(
        self,
        device: DeviceCopies,
        tables: DeviceTables,
        find_columns: Callable[[Sequence[Column]], Layout | Items | None],
        lose: Callable[[Lane, Exception, int], None],
    ) -> None:
        """
        Args:
            device: Object that copies device values.
            tables: Object that counts distributions on devices.
            find_columns: Function that returns the layout or description of columns, or None if there are too many streams.
            lose: Callback for device errors. It receives the lane, the error and the number of lost values.
        """
        self._device = device
        self._find_columns = find_columns
        self._lose = lose
        self._tables = tables

    def split(self, lane: Lane, numbers: int, distributions: Distributions) -> Iterator[dict[str, Distribution]]:
        """Split distributions into one group per row. A row with several distributions takes at most a quarter of the lane.

        Args:
            lane: Lane of the rows.
            numbers: Number of other values that the first row will contain.
            distributions: Distributions by name.
        """
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
        """Write one row, and launch the copies that complete it.

        Returns:
            True if the row was written, or if a device error left no values to write. False if the lane has no room. None if
            the row can never fit into the lane, or if there are too many streams.
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
        if items_bytes(len(columns), len(words) // 8) > lane.size:
            return None
        described = self._find_columns(columns)
        if described is None:
            return None
        try:  # count before writing the row, because counting fails if the device has no free memory
            counted = [self._counts(run, table) for table, run in counting]
        except Exception as error:
            rest = {name: d for name, d in distributions.items() if isinstance(d, HostDistribution)}
            self._lose(lane, error, len(distributions) - len(rest))
            return self.write(lane, numbers, devices, rest, step) if numbers or devices or rest else True
        word = lane.write_words(described, bytes(words), step)
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
            self._lose(lane, error, 0)  # the reader counts the lost values
        return True

    def _counts(self, run: "_Run", table: Table) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return the concatenated counts and statistics of a run. Count tensors that have not been counted yet."""
        import torch

        tensors = [value.tensor for value in run.values() if isinstance(value, DeviceDistribution)]
        if tensors:
            return self._tables.count(tensors, table)
        counted = [value for value in run.values() if isinstance(value, CountedOnDevice)]
        with torch.inference_mode(mode=False):
            return torch.cat([value.counts for value in counted]), torch.cat([value.statistics for value in counted])


_Run = Mapping[str, DeviceDistribution | CountedOnDevice]
"""Distributions that are counted and copied together. They have the same type, device and table."""


def _words_of(distribution: Distribution) -> int:
    """Return the number of words that a distribution takes in a row."""
    if not isinstance(distribution, HostDistribution):
        return distribution.table.words + STATISTICS_WORDS
    return len(distribution.words) // 8 + (0 if distribution.code == EXPLICIT else STATISTICS_WORDS)


def _runs(distributions: "_Run") -> list[tuple[Table, "_Run"]]:
    """Group the distributions on devices into runs, and return each run with its table."""

    def key(item: tuple[str, DeviceDistribution | CountedOnDevice]) -> tuple[bool, str, str]:
        value = item[1]
        if isinstance(value, DeviceDistribution):
            return False, str(value.tensor.device), value.table.code
        return True, str(value.counts.device), value.table.code

    return [
        (items[0][1].table, dict(items))
        for _, group in groupby(sorted(distributions.items(), key=key), key)
        if (items := list(group))
    ]
