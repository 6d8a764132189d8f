"""Writing of rows with classified values: numbers, device values, distributions and measurements.

A lane has a writer for each combination of names and kinds of numbers. The first row with a combination creates its writer.
Device values are copied into a row after the row has been written. `HistogramRows` writes rows with distributions.
Values that cannot be written are counted, and cause one warning.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tensormeter.record.device.device_copies import DeviceCopies, place
from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.log_timing import LogTiming
from tensormeter.record.rows.device_rows import make_device_writer
from tensormeter.record.rows.histogram_rows import Distributions, HistogramRows
from tensormeter.record.rows.lane import Lane, Writer
from tensormeter.record.rows.layouts import Layouts
from tensormeter.record.values.classify import Deferred, DeviceValue, kind_of
from tensormeter.record.warn_once import WarnOnce
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import Drop
from tensormeter.ring.layout import Layout, row_bytes

if TYPE_CHECKING:
    from tensormeter.record.rows.stream_writer import StreamWriter

__all__ = ["Devices", "Numbers", "Rows"]

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
        layouts: Layouts,
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
            layouts: Layouts of the ring's rows.
            device: Object that copies device values.
            tables: Object that counts distributions on devices.
            notices: Object that warns about values that cannot be written.
            fallback: Function that writers call for unexpected arguments.
            last_step: Array that contains only the step of the last row, as int64.
        """
        self._ring_bytes = len(ring.buffer)
        self._layouts = layouts
        self._device = device
        self._notices = notices
        self._fallback = fallback
        self._last_step = last_step
        self._cost = LogTiming(ring)
        self._wide = HistogramRows(device, tables, layouts.of_distributions, self.lose)

    def write(self, lane: Lane, numbers: Numbers, devices: Devices, step: int) -> Writer | None:
        """Write a row, unless it has no values.

        Returns:
            Writer for further rows with the same names and kinds. None if there is no such writer.
        """
        if devices:
            self.write_devices(lane, numbers, devices, step)
            return None
        return self._write_numbers(lane, numbers, step) if numbers else None

    def write_devices(self, lane: Lane, numbers: Numbers, devices: Devices, step: int) -> None:
        """Write a row with device values, which arrive later."""
        ordered, kinds, layout = self._order_devices(lane, numbers, devices)
        if layout is None:
            self.refuse(lane, next(iter(ordered)), len(kinds) + len(ordered))
            return
        if self._write_copies(lane, layout, list(numbers.values()), list(ordered.values()), step) is not None:
            self._last_step[0] = step

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
        ordered, kinds, layout = self._order_devices(lane, numbers, devices)
        if layout is None:
            return None
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
        for group in self._wide.split(lane, len(numbers) + len(devices), distributions):
            written = self._wide.write(lane, numbers, devices, group, step)
            if written is None and (len(group) > 1 or numbers or devices):
                self.write(lane, numbers, devices, step)
                for name, distribution in group.items():
                    self.write_distributions(lane, {}, {}, {name: distribution}, step)
            elif written is None:
                lane.count(Drop.TOO_MANY_LAYOUTS)
                self._notices.once(
                    HistogramRows,
                    "%r is not recorded: the ring (%d bytes) is too small for this distribution or for so many "
                    "different names; raise TENSORMETER_BUFFER_BYTES",
                    next(iter(group)),
                    self._ring_bytes,
                )
            elif not written:
                self._count_full(lane, len(group) + len(numbers) + len(devices))
            numbers, devices = {}, {}
        self._last_step[0] = step

    def write_words(self, lane: Lane, layout: Layout, words: bytes, step: int) -> None:
        """Write a row without advancing the step. The argument `words` contains the bytes of its values."""
        if lane.write_words(layout, words, step) is None:
            self._count_full(lane, len(layout.names))

    def write_measurement(self, lane: Lane, stream: "StreamWriter", number: float) -> Writer | None:
        """Write an instrument's measurement.

        Returns:
            Writer for further numbers of the same type. None if the measurement was not recorded.
        """
        code = "d" if type(number) is float else "q"
        layout = self._layouts.of_stream(stream, stream.stream, code)
        if layout is None:
            self.refuse(lane, stream.name)
            return None
        writer = lane.writers.get((stream, code))
        if writer is None:
            writer = lane.make_writer(layout, code, stream.fall_back, array("q", [_NO_STEP]))
            lane.writers[stream, code] = writer
        size = layout.row_bytes
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
        layout = self._layouts.of_stream(stream, stream.stream, "D")
        if layout is None:
            self.refuse(lane, stream.name)
            return None
        return self._write_copies(lane, layout, [], [value], _NO_STEP)

    def layout(self, lane: Lane, names: tuple[str, ...], codes: str) -> Layout | None:
        """Return the layout for a row of plain gauges, or None if there are too many layouts or the row is too large."""
        return self._layouts.of_row(names, codes) if row_bytes(len(names)) <= lane.size else None

    def refuse(self, lane: Lane, name: str, number: int = 1) -> None:
        """Count values that cannot be written because no layout is available, and warn once."""
        lane.count(Drop.TOO_MANY_LAYOUTS, number)
        self._notices.note(Drop.TOO_MANY_LAYOUTS, repr(name))
        self._notices.once(
            Drop.TOO_MANY_LAYOUTS,
            "%r is not recorded: this process has logged too many different names; log fewer",
            name,
        )

    def lose(self, lane: Lane, error: Exception, number: int) -> None:
        """Count device values that were lost before they were in a row, and warn once about the device error."""
        if number:
            lane.count(Drop.DEVICE_UNFINISHED, number)
        self._notices.once(DeviceCopies, "lost device values: %s", error)

    def _write_numbers(self, lane: Lane, numbers: Numbers, step: int) -> Writer | None:
        names = tuple(numbers)
        kinds = "".join(map(kind_of, numbers.values()))
        writer = lane.writers.get((names, kinds))
        if writer is None:
            layout = self.layout(lane, names, kinds.replace("i", "d"))
            if layout is None:
                return self._write_separately(lane, numbers, step)
            writer = lane.make_writer(layout, kinds, self._fallback, self._last_step)
            lane.writers[names, kinds] = writer
        size = row_bytes(len(names))
        if lane.cursor[0] + size > lane.cursor[1] and not lane.make_room(size):
            self._count_full(lane, len(numbers))
            return None
        writer(numbers, step)
        return writer

    def _write_separately(self, lane: Lane, numbers: Numbers, step: int) -> Writer | None:
        """Write each value as a separate row. Use this if a row is larger than its lane, or if there are too many key sets."""
        writer = None
        if len(numbers) > 1:
            for name, number in numbers.items():
                writer = self._write_numbers(lane, {name: number}, step) or writer
        else:
            self.refuse(lane, next(iter(numbers)))
        return writer

    def _order_devices(
        self, lane: Lane, numbers: Numbers, devices: Devices
    ) -> tuple[dict[str, DeviceValue | Deferred], str, Layout | None]:
        """Return the device values in column order, the kinds of the numbers, and the layout of the row (or None)."""
        ordered = dict(sorted(devices.items(), key=lambda item: place(item[1])))
        kinds = "".join(map(kind_of, numbers.values()))
        return ordered, kinds, self.layout(lane, (*numbers, *ordered), kinds.replace("i", "d") + "D" * len(ordered))

    def _write_copies(
        self,
        lane: Lane,
        layout: Layout,
        values: list[float],
        devices: Sequence[DeviceValue | Deferred],
        step: int,
    ) -> int | None:
        """Write a row whose last values are device values. Return the index of the first device value's word."""
        word = lane.write_pending(layout, values, step)
        if word is None:
            self._count_full(lane, len(layout.names))
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
