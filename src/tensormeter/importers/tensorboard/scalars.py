"""Scalars of event files, as columns of points.

Most events have one number with a tag. In these, only the wall time, the step and the number differ between the events of
a tag. NumPy therefore takes them from all events of a block at once, and only the first event of each tag is parsed.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.tensorboard.messages import Event, Value
from tensormeter.importers.tensorboard.record_file import RecordBlock

__all__ = ["NumberBlock", "ScalarReader", "Scalars", "wall_nanoseconds"]

_WALL_TIME: Final = 0x09
_STEP: Final = 0x10
_SUMMARY: Final = 0x2A
"""Tags of an event's fields, in the order in which writers encode them."""
_WALL_TIME_END: Final = 9
_MOST_STEP_BYTES: Final = 5
_LONGEST_EVENT: Final = 1024
_MOST_VALUES: Final = 25_000
"""Number of values to pass on at once. Each needs a step of its time too, so a request has 50,000 points."""


class Scalars(NamedTuple):
    """Scalars of a block of records.

    Attributes:
        records: Index of each scalar's record, in ascending order, int64, shape (n,).
        wall_times: Seconds since the Unix epoch, float64, shape (n,).
        steps: Steps, int64, shape (n,).
        values: Values, float64, shape (n,).
        tags: Index of each tag in `ScalarReader.names`, int64, shape (n,).
        others: Indices of the records that contain anything else, in ascending order.
    """

    records: NDArray[np.int64]
    wall_times: NDArray[np.float64]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    tags: NDArray[np.int64]
    others: list[int]


class ScalarReader:
    """Reader of scalars in blocks of records. Not thread-safe.

    Attributes:
        names: Tags.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._heads: dict[bytes, int] = {}
        """Index of the tag by the bytes between the step and the value; -1 for events of another form."""
        self._weights = np.random.default_rng(0).integers(1, 1 << 63, _LONGEST_EVENT, np.uint64) | np.uint64(1)

    def read(self, block: RecordBlock) -> Scalars:
        """Return the scalars in a block of records, and which records contain anything else."""
        data = np.frombuffer(block.data, np.uint8)
        tags: NDArray[np.int64] = np.full(len(block.starts), -1, np.int64)
        steps: NDArray[np.int64] = np.zeros(len(block.starts), np.int64)
        heads = self._find_heads(data, block, steps)
        for size in np.unique(block.lengths - heads).tolist():
            chosen = np.flatnonzero((block.lengths - heads == size) & (heads > 0))
            if len(chosen) and size > 4:
                tags[chosen] = self._tags_of(data, block, chosen, heads, size)
        records = np.flatnonzero(tags >= 0)
        starts, ends = block.starts[records], (block.starts + block.lengths)[records]
        wall_times: NDArray[np.float64] = np.ndarray((max(len(data) - 7, 0),), "<f8", block.data, 0, (1,))
        values: NDArray[np.float32] = np.ndarray((max(len(data) - 3, 0),), "<f4", block.data, 0, (1,))
        return Scalars(
            records,
            wall_times[starts + 1],
            steps[records],
            values[ends - 4].astype(np.float64),
            tags[records],
            np.flatnonzero(tags < 0).tolist(),
        )

    def _find_heads(self, data: NDArray[np.uint8], block: RecordBlock, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the summary begins in each record, or 0 if the record has another form. Store the steps."""
        heads: NDArray[np.int64] = np.zeros(len(block.starts), np.int64)
        chosen = np.flatnonzero(
            (block.lengths >= _WALL_TIME_END + 2 * _MOST_STEP_BYTES) & (block.lengths <= _LONGEST_EVENT)
        )
        starts = block.starts[chosen]
        timed = data[starts] == _WALL_TIME
        chosen, starts = chosen[timed], starts[timed]
        tags = data[starts + _WALL_TIME_END]
        first = chosen[tags == _SUMMARY]  # an event at step 0 has no step
        heads[first] = _WALL_TIME_END
        chosen = chosen[tags == _STEP]
        at = np.full(len(chosen), _WALL_TIME_END + 1, np.int64)
        for index in range(_MOST_STEP_BYTES):
            byte = data[block.starts[chosen] + at].astype(np.int64)
            steps[chosen] |= (byte & 0x7F) << 7 * index
            at += 1
            ends = byte < 0x80
            whole = ends & (data[block.starts[chosen] + at] == _SUMMARY)
            heads[chosen[whole]] = at[whole]
            chosen, at = chosen[~ends], at[~ends]
        return heads

    def _tags_of(
        self,
        data: NDArray[np.uint8],
        block: RecordBlock,
        chosen: NDArray[np.int64],
        heads: NDArray[np.int64],
        size: int,
    ) -> NDArray[np.int64]:
        """Return the index of the tag of records whose last `size` bytes are a summary; -1 for other forms."""
        positions = (block.starts[chosen] + heads[chosen])[:, np.newaxis] + np.arange(size - 4)
        parts = data[positions]
        hashes = (parts * self._weights[: size - 4]).sum(axis=1, dtype=np.uint64)
        _, first, groups = np.unique(hashes, return_index=True, return_inverse=True)
        same = (parts == parts[first][groups]).all(axis=1)
        numbers = np.array(
            [self._tag_of(parts[index].tobytes(), block.record(chosen[index])) for index in first], np.int64
        )
        return np.where(same, numbers[groups], -1)

    def _tag_of(self, head: bytes, record: bytes) -> int:
        """Return the index of the tag with this head, or -1 if the record is not a plain scalar."""
        number = self._heads.get(head)
        if number is None:
            number = self._parse(record)
            if len(self._heads) < METRIC_NAMES:
                self._heads[head] = number
        return number

    def _parse(self, record: bytes) -> int:
        """Return the index of the tag of a record that has a wall time, a step, one tag and one number, otherwise -1."""
        try:
            event = Event.FromString(record)
            (data,) = event.summary.value
            value = Value.FromString(data)
        except (DecodeError, ValueError):
            return -1
        tag = value.tag
        if not isinstance(tag, str):  # not UTF-8
            return -1
        plain = Event(wall_time=event.wall_time)
        if event.HasField("step"):
            plain.step = event.step
        plain.summary.value.append(Value(tag=tag, simple_value=value.simple_value).SerializeToString())
        is_full = len(self.names) >= METRIC_NAMES
        if is_full or not value.HasField("simple_value") or plain.SerializeToString() != record:
            return -1
        if tag not in self._numbers:
            self._numbers[tag] = len(self.names)
            self.names.append(tag)
        return self._numbers[tag]

    def send(self, requests: RunRequests, scalars: Scalars, begin: int, end: int) -> None:
        """Pass on the scalars from index `begin` up to index `end`."""
        for start in range(begin, end, _MOST_VALUES):
            part = slice(start, min(start + _MOST_VALUES, end))
            times = requests.place(scalars.steps[part], wall_nanoseconds(scalars.wall_times[part]))
            tags, values = scalars.tags[part], scalars.values[part]
            order = np.argsort(tags, kind="stable")
            borders = np.flatnonzero(np.diff(tags[order])) + 1
            for rows in np.split(order, borders):
                requests.placed_points(self.names[int(tags[rows[0]])], times[rows], values[rows])


class NumberBlock:
    """Scalars that were parsed one by one, such as those in tensors. Not thread-safe."""

    def __init__(self, requests: RunRequests) -> None:
        self._requests = requests
        self._columns: dict[str, tuple[list[int], list[float]]] = {}
        self._steps: list[int] = []
        self._times: list[float] = []

    def add(self, tag: str, step: int, wall_time: float, number: float) -> None:
        """Add a number. `wall_time` is in seconds since the Unix epoch."""
        rows, numbers = self._columns.setdefault(tag, ([], []))
        rows.append(len(self._steps))
        numbers.append(number)
        self._steps.append(step)
        self._times.append(wall_time)
        if len(self._steps) >= _MOST_VALUES:
            self.flush()

    def flush(self) -> None:
        """Pass on the points."""
        if self._steps:
            times = self._requests.place(np.array(self._steps, np.int64), wall_nanoseconds(self._times))
            for tag, (rows, numbers) in self._columns.items():
                self._requests.placed_points(tag, times[rows], np.array(numbers, np.float64))
        self._columns, self._steps, self._times = {}, [], []


def wall_nanoseconds(seconds: Any) -> NDArray[np.int64]:
    """Convert wall times to nanoseconds since the Unix epoch. Invalid times, such as 0 and NaN, become the least valid one."""
    values = np.asarray(seconds, np.float64)
    valid = (values > 0) & (values < 9.2e9)
    return np.where(valid, np.round(np.where(valid, values, 0) * 1e9), 1).astype(np.int64)
