"""Decoding of many segments of numbers: small segments together, and equal columns once."""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.sqlite.points.segments import (
    FLOATS,
    INTEGERS,
    Segment,
    decode_mask,
    decode_segment,
    decode_times,
    decode_words,
    inflate,
    join_planes,
)

__all__ = ["SegmentDecoder"]

_SMALL: Final = 128
"""Maximum number of points in a small segment. Decoding it alone takes longer than decompressing it."""

_CACHED: Final = 8
"""Number of decoded columns of each kind to keep, 512 KiB each."""

_K = TypeVar("_K")


class SegmentDecoder:
    """A decoder of segments of numbers. Not thread-safe.

    All metrics of a process have the same times, and all ranks have the same steps, so that their columns are equal.
    """

    def __init__(self) -> None:
        self._times: _Cache[tuple[bytes, int, int]] = _Cache()
        self._words: _Cache[bytes] = _Cache()

    def decode(self, segments: Sequence[Segment]) -> list[Points | DamagedError]:
        """Decode segments, and return the points or the damage of each. Points of one array may be shared."""
        decoded: list[Points | DamagedError | None] = [None] * len(segments)
        small: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, segment in enumerate(segments):
            if segment.n <= _SMALL and segment.kind in (FLOATS, INTEGERS):
                small[segment.n, segment.kind].append(position)
        for positions in small.values():
            if len(positions) > 1:
                for position, points in zip(positions, _decode_equal([segments[p] for p in positions]), strict=False):
                    decoded[position] = points
        return [
            self._decode(segment) if points is None else points
            for segment, points in zip(segments, decoded, strict=True)
        ]

    def _decode(self, segment: Segment) -> Points | DamagedError:
        try:
            if segment.n <= _SMALL:
                return decode_segment(segment)
            key = segment.times, segment.t_min, segment.t_max
            times = self._times.get(key)
            if times is None:
                times = self._times.add(key, decode_times(segment))
            words = self._words.get(segment.words)
            if words is None or len(words) != segment.n:
                words = self._words.add(segment.words, decode_words(segment))
            return Points(times, words, decode_mask(segment))
        except DamagedError as error:
            return DamagedError(str(error), series=segment.series)


class _Cache(OrderedDict[_K, NDArray[np.int64]]):
    def add(self, key: _K, column: NDArray[np.int64]) -> NDArray[np.int64]:
        self[key] = column
        if len(self) > _CACHED:
            self.popitem(last=False)
        return column


def _decode_equal(segments: Sequence[Segment]) -> list[Points]:
    """Decode segments of the same length and kind. Return nothing if any is damaged."""
    n, k = segments[0].n, len(segments)
    try:
        planes = [inflate(blob, 8 * n) for segment in segments for blob in (segment.times, segment.words)]
    except DamagedError:
        return []
    columns = join_planes(b"".join(planes), n).reshape(k, 2, n)
    times = np.cumsum(columns[:, 0], axis=1)
    times += np.array([segment.t_min for segment in segments], np.int64)[:, None]
    if times[:, -1].tolist() != [segment.t_max for segment in segments]:
        return []
    integers = np.full(n, segments[0].kind == INTEGERS)
    return [Points(*row, integers) for row in zip(times, columns[:, 1], strict=True)]
