"""The streams of one ring by number, as its dictionary defines them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.aggregation import AGGREGATED
from tensormeter.ring.histogram_buckets import KIND
from tensormeter.ring.layout import Stream

__all__ = ["AGGREGATE", "DISTRIBUTION", "GAUGE", "UNKNOWN", "StreamTable"]

UNKNOWN: Final = 0
GAUGE: Final = 1
AGGREGATE: Final = 2
"""The stream's values are aggregated."""
DISTRIBUTION: Final = 3

_LARGEST_GAP: Final = 1 << 20
"""Maximum number of missing streams before an entry's first stream. A damaged dictionary may lack entries."""


class StreamTable(Mapping[int, Stream]):
    """Streams by number. A number without a stream is unknown."""

    def __init__(self) -> None:
        # Most streams are plain gauges, of which only the name is kept.
        self._entries: list[str | Stream | None] = []
        self._kinds: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def add(self, first: int, entries: Sequence[Mapping[str, Any] | str]) -> None:
        """Add streams with the numbers from `first` on. Ignore entries that are not valid."""
        if not 0 <= first <= len(self._entries) + _LARGEST_GAP:
            return
        streams = [entry if isinstance(entry, str) else _parse(entry) for entry in entries]
        end = first + len(streams)
        self._entries += [None] * (end - len(self._entries))
        self._entries[first:end] = streams
        if end > len(self._kinds):
            self._kinds = np.concatenate([self._kinds, np.zeros(max(end, 2 * len(self._kinds)), np.uint8)])
        self._kinds[first:end] = [_kind(stream) for stream in streams]

    def __getitem__(self, number: int) -> Stream:
        entry = self._entries[number] if 0 <= number < len(self._entries) else None
        if entry is None:
            raise KeyError(number)
        return Stream(entry) if isinstance(entry, str) else entry

    def __iter__(self) -> Iterator[int]:
        return (number for number, entry in enumerate(self._entries) if entry is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def kinds(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the kind of each stream: UNKNOWN, GAUGE, AGGREGATE or DISTRIBUTION."""
        kinds: NDArray[np.uint8] = np.zeros(len(numbers), np.uint8)
        there = (numbers >= 0) & (numbers < len(self._kinds))
        kinds[there] = self._kinds[numbers[there]]
        return kinds


def _parse(entry: Mapping[str, Any]) -> Stream | None:
    try:
        return Stream.from_json(entry)
    except (TypeError, AttributeError):
        return None


def _kind(stream: str | Stream | None) -> int:
    if stream is None:
        return UNKNOWN
    if isinstance(stream, str):
        return GAUGE
    if stream.kind == KIND:
        return DISTRIBUTION
    return AGGREGATE if stream.kind in AGGREGATED else GAUGE
