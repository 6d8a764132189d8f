"""Writing of rows with classified values: numbers, device values, distributions and measurements.

A lane's row writer writes rows of numbers. Device values are copied into a row after the row has been written. `HistogramRows` writes rows with distributions.
Values that cannot be written are counted, and cause one warning.
"""

import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from tensormeter.record.device.device_copies import DeviceCopies, place
from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.histogram.histogram import HostDistribution
from tensormeter.record.log_timing import LogTiming
from tensormeter.record.rows.device_rows import make_device_writer
from tensormeter.record.rows.histogram_rows import Distributions, HistogramRows
from tensormeter.record.rows.lane import Lane, RowWriter, Writer, make_key_sets
from tensormeter.record.rows.layouts import FEW_COLUMNS, FIRST_LAYOUTS, FREQUENT, Layouts
from tensormeter.record.rows.stream_numbers import StreamNumbers
from tensormeter.record.values.classify import Deferred, DeviceValue, kind_of
from tensormeter.record.warn_once import WarnOnce
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import Drop
from tensormeter.ring.histogram_buckets import KIND
from tensormeter.ring.layout import Column, Items, Layout, Stream, items_in

if TYPE_CHECKING:
    from tensormeter.record.rows.stream_writer import StreamWriter

__all__ = ["Devices", "Numbers", "Rows"]

_T = TypeVar("_T")

Numbers = dict[str, float | int]
Devices = Mapping[str, DeviceValue | Deferred]

_NO_STEP: Final = 0

_MOST_DEVICE_WRITERS: Final = 256
"""Maximum number of writers for rows with device values in one lane."""


class Rows:
    """Writes rows to one ring. The calling thread must be allowed to write to the lane that it passes."""

    def __init__(
        self,
        ring: RingFile,
        numbers: StreamNumbers,
        device: DeviceCopies,
        tables: DeviceTables,
        notices: WarnOnce,
        *,
        fallback: Writer,
        last_step: "array[int]",
    ) -> None:
        """
        Args:
            ring: Ring that this process has created.
            numbers: Numbers of the ring's streams.
            device: Object that copies device values.
            tables: Object that counts distributions on devices.
            notices: Object that warns about values that cannot be written.
            fallback: Function that writers call for unexpected arguments.
            last_step: Array that contains only the step of the last row, as int64.
        """
        self._ring_bytes = len(ring.buffer)
        self._folder = ring.path.parent
        self._numbers = numbers
        self.layouts = layouts = Layouts(ring, numbers)
        self._sets = make_key_sets(
            numbers.names,
            numbers.of_names,
            self._add_layout,
            first=FIRST_LAYOUTS,
            few=FEW_COLUMNS,
            frequent=FREQUENT,
        )
        self._device = device
        self._notices = notices
        self._fallback = fallback
        self._last_step = last_step
        self._cost = LogTiming(ring)
        self._wide = HistogramRows(device, tables, layouts.of_columns, self.lose)

    def writer_of(self, lane: Lane) -> RowWriter:
        """Return the lane's row writer."""
        writer = lane.row_writer
        if writer is None:
            writer = lane.row_writer = lane.make_row_writer(
                self._sets, self._fallback, lambda values: self._count_full(lane, values), self._last_step
            )
        return writer

    def write(self, lane: Lane, numbers: Numbers, devices: Devices, step: int) -> None:
        """Write a row, unless it has no values."""
        if devices:
            self.write_devices(lane, numbers, devices, step)
        elif numbers:
            self._write_numbers(lane, numbers, step)

    def write_devices(self, lane: Lane, numbers: Numbers, devices: Devices, step: int) -> None:
        """Write a row with device values, which arrive later. A row that is too large is split."""
        most = items_in(lane.most_bytes)
        ordered = dict(sorted(devices.items(), key=lambda item: place(item[1])))
        self._numbers.add_names((*numbers, *ordered))
        known = self._with_numbers(lane, ordered)
        if len(numbers) + len(known) > most or len(known) < len(ordered):
            self.write(lane, numbers, {}, step)
            numbers = {}
        names = [*known]
        for start in range(0, len(names), most):
            part = names[start : start + most]
            codes = _codes(numbers) + "D" * len(part)
            columns = self.layouts.of_gauges((*numbers, *part), codes)
            if columns is None:  # a number has no number
                self.refuse(lane, [*numbers, *part])
            else:
                values = [known[name] for name in part]
                if self._write_copies(lane, columns, codes, [*numbers.values()], values, step) is not None:
                    self._last_step[0] = step
            numbers = {}

    def make_device_writer(
        self, lane: Lane, values: Mapping[str, object], numbers: Numbers, devices: Devices
    ) -> Writer | None:
        """Make a writer for further rows like the one that has just been written, which has device values.

        Args:
            lane: Lane of the row. The lane keeps the writer.
            values: Values of the row, as they were logged.
            numbers: Host values of the row.
            devices: Device values of the row.

        Returns:
            Writer that replaces `Recorder.log`, or None if no writer can handle such rows.
        """
        if not self._device.is_settled(values[name] for name in devices) or any(
            type(values[name]) is not type(number) for name, number in numbers.items()
        ):
            return None
        if len(values) > items_in(lane.most_bytes):
            return None
        ordered = dict(sorted(devices.items(), key=lambda item: place(item[1])))
        layout = self.layouts.of_gauges((*numbers, *ordered), _codes(numbers) + "D" * len(ordered))
        if not isinstance(layout, Layout):
            return None
        kinds = "".join(map(kind_of, numbers.values()))
        tensors = [value.tensor for value in ordered.values() if isinstance(value, DeviceValue)]
        device = tensors[0].device
        writer = make_device_writer(
            lane,
            layout,
            kinds,
            tensors,
            lambda word, tensors: self._copy(
                lane, word, len(tensors), lambda: self._device.copy_tensors(word, device, tensors)
            ),
            fallback=self._fallback,
            last_step=self._last_step,
            cost=self._cost,
            notices=self._notices,
        )
        if len(lane.device_writers) >= _MOST_DEVICE_WRITERS:
            lane.device_writers.clear()
        lane.device_writers[tuple(values)] = writer.write
        return writer.log

    def write_distributions(
        self, lane: Lane, numbers: Numbers, devices: Devices, distributions: Distributions, step: int
    ) -> None:
        """Write distributions as one row, or as several rows if the lane is small.

        The first row also contains the numbers and device values.
        """
        compacted = {
            name: distribution.compact() if isinstance(distribution, HostDistribution) else distribution
            for name, distribution in distributions.items()
        }
        for group in self._wide.split(lane, len(numbers) + len(devices), compacted):
            written = self._wide.write(lane, numbers, devices, group, step)
            if written is None and (len(group) > 1 or numbers or devices):
                self.write(lane, numbers, devices, step)
                for name, distribution in group.items():
                    self.write_distributions(lane, {}, {}, {name: distribution}, step)
            elif written is None and self._numbers.of(Stream(next(iter(group)), KIND)) is None:
                self.refuse(lane, [*group])
            elif written is None:
                lane.count(Drop.RING_FULL)
                self._notices.once(
                    HistogramRows,
                    "%r is not recorded: the ring (%d bytes) is too small for this distribution; raise "
                    "TENSORMETER_BUFFER_BYTES",
                    next(iter(group)),
                    self._ring_bytes,
                )
            elif not written:
                self._count_full(lane, len(group) + len(numbers) + len(devices))
            numbers, devices = {}, {}
        self._last_step[0] = step

    def write_words(self, lane: Lane, columns: Layout | Items, words: bytes, step: int) -> None:
        """Write a row of values that take one word each, without advancing the step."""
        if lane.write_words(columns, words, step) is None:
            self._count_full(lane, len(words) >> 3)

    def write_measurement(self, lane: Lane, stream: "StreamWriter", number: float) -> Writer | None:
        """Write an instrument's measurement.

        Returns:
            Writer for further numbers of the same type. None if there is none, or if the measurement was not recorded.
        """
        code = "d" if type(number) is float else "q"
        columns = self.layouts.of_stream(stream, stream.stream, code)
        if columns is None:
            self.refuse(lane, [stream.name])
            return None
        if isinstance(columns, Items):
            self.write_words(lane, columns, struct.pack(f"<{code}", number), _NO_STEP)
            return None
        writer = lane.writers.get((stream, code))
        if writer is None:
            writer = lane.make_writer(columns, code, stream.fall_back, array("q", [_NO_STEP]))
            lane.writers[stream, code] = writer
        size = columns.row_bytes
        if lane.cursor[0] + size > lane.cursor[1] and not lane.make_room(size):
            self._count_full(lane, 1)
            return None
        writer({stream.name: number}, _NO_STEP)
        return writer

    def write_device_measurement(self, lane: Lane, stream: "StreamWriter", value: DeviceValue | Deferred) -> int | None:
        """Write an instrument's measurement whose value becomes available later.

        Returns:
            Index of the ring word for the value, or None if the measurement was not recorded.
        """
        columns = self.layouts.of_stream(stream, stream.stream, "D")
        if columns is None:
            self.refuse(lane, [stream.name])
            return None
        return self._write_copies(lane, columns, "D", [], [value], _NO_STEP)

    def refuse(self, lane: Lane, names: Sequence[str]) -> None:
        """Count values whose names cannot be recorded, and warn once."""
        lane.count(Drop.TOO_MANY_NAMES, len(names))
        self._notices.note(Drop.TOO_MANY_NAMES, repr(names[0]))
        if self._numbers.is_full:
            self._notices.once(
                Drop.TOO_MANY_NAMES,
                "%r is not recorded: this process has already logged %d different names; log fewer, or raise "
                "TENSORMETER_MAX_METRIC_NAMES",
                names[0],
                len(self._numbers),
            )
        else:
            self._notices.once(
                StreamNumbers,
                "%r is not recorded: its name cannot be stored next to the ring, because the file system is full; free "
                "space in %s",
                names[0],
                self._folder,
            )

    def lose(self, lane: Lane, error: Exception, number: int) -> None:
        """Count device values that were lost before they were in a row, and warn once about the device error."""
        if number:
            lane.count(Drop.DEVICE_UNFINISHED, number)
        self._notices.once(DeviceCopies, "lost device values: %s", error)

    def _write_numbers(self, lane: Lane, numbers: Numbers, step: int) -> None:
        write = self.writer_of(lane).write
        if write(numbers, step) or lane.is_closed:
            return
        self._numbers.add_names(numbers)
        if write(numbers, step) or lane.is_closed:
            return
        # Some names have a reduction rule, which the row writer does not know, or no number.
        known = self._with_numbers(lane, numbers)
        names, most = [*known], items_in(lane.most_bytes)
        for start in range(0, len(names), most):
            part = {name: known[name] for name in names[start : start + most]}
            codes = _codes(part)
            columns = self.layouts.of_gauges((*part,), codes)
            if columns is not None:
                self.write_words(lane, columns, struct.pack(f"<{codes}", *part.values()), step)
                self._last_step[0] = step

    def _with_numbers(self, lane: Lane, values: "Mapping[str, _T]") -> "dict[str, _T]":
        """Return the values whose names have a number, and refuse the others."""
        refused = [name for name in values if self._numbers.of_name(name) is None]
        if not refused:
            return {**values}
        self.refuse(lane, refused)
        return {name: value for name, value in values.items() if self._numbers.of_name(name) is not None}

    def _add_layout(self, names: tuple[str, ...], codes: str) -> int:
        """Add the layout for a row of numbers, and return its number; 0 if there can be no further layouts."""
        layout = self.layouts.add(tuple(Column(Stream(name), code) for name, code in zip(names, codes, strict=True)))
        return 0 if layout is None else layout.id

    def _write_copies(
        self,
        lane: Lane,
        columns: Layout | Items,
        codes: str,
        values: list[float],
        devices: Sequence[DeviceValue | Deferred],
        step: int,
    ) -> int | None:
        """Write a row whose last values are device values. Return the index of the first device value's word."""
        word = lane.write_pending(columns, codes, values, step)
        if word is None:
            self._count_full(lane, len(codes))
            return None
        self._copy(lane, word, len(devices), lambda: self._device.copy(word, devices))
        return word

    def _copy(self, lane: Lane, word: int, number: int, launch: Callable[[], None]) -> None:
        """Launch copies to words of a row. If launching fails, mark the values as lost."""
        try:
            launch()
        except BaseException as error:
            self._device.give_up(word, number)
            if not isinstance(error, Exception):
                raise
            self.lose(lane, error, 0)  # the reader counts the lost values

    def _count_full(self, lane: Lane, points: int) -> None:
        """Count points that do not fit into the lane, and warn once."""
        if lane.is_closed:  # closed in the meantime by another thread or a signal handler
            return
        lane.count(Drop.RING_FULL, points)
        self._notices.once(
            Drop.RING_FULL,
            "the ring (%d bytes) is full, so rows are dropped; raise TENSORMETER_BUFFER_BYTES, or check that the "
            "agent is running",
            self._ring_bytes,
        )


def _codes(numbers: Numbers) -> str:
    """Return the storage codes of numbers."""
    return "".join("q" if kind_of(number) == "q" else "d" for number in numbers.values())
