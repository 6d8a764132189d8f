"""A content coding for requests with many points per gauge, which makes them compress better.

The points of a gauge differ only in their times and values. This coding stores their other bytes once. It stores times
and integers as differences, and separates times and values into planes: the highest bytes of all words, the second highest
bytes, and so on. Random bytes are then apart from bytes that compress well.

The coded form is ``runs | run ... | other bytes | planes of the times | planes of the values``. Each run is
``gap | points | size | time | value``: the number of other bytes before the run, the number of points, the size of a point
in bytes, and the offsets of its time and value. After each gap, the other bytes contain the first point of the run, whose
time and value are zero. All numbers are little-endian.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.errors import EncodingError
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.fixed_layout import find_points, iterate_some_fields

__all__ = ["DecodedTooLargeError", "join_planes", "split_planes"]

_HEAD: Final = struct.Struct("<I")
_RUN: Final = struct.Struct("<IIHHH")

_LEAST_POINTS: Final = 8
_MOST_RUNS: Final = 10_000

_METRICS_TO_TRY: Final = 100

_LEN: Final = 2
_PATH: Final = (1, 2, 2)
"""Field numbers from a request to its metrics: resource metrics, scope metrics, metrics."""
_GAUGE: Final = 5
_POINT_TAG: Final = 1 << 3 | 2
_TAG_INT: Final = 6 << 3 | 1


class DecodedTooLargeError(EncodingError):
    """A coded request is larger than allowed when decoded."""


class _Run(NamedTuple):
    """Points of one gauge: the number of other bytes before them, their number and size, and the offsets in each point."""

    gap: int
    points: int
    size: int
    time: int
    value: int


def split_planes(body: bytes) -> bytes | None:
    """Return the coded form of a request with metrics. Return None if less than half of it would be in planes."""
    runs: list[_Run] = []
    other: list[bytes] = []
    times: list[NDArray[np.uint64]] = []
    values: list[NDArray[np.uint64]] = []
    at = in_planes = 0
    for begin, end, size, time, value in _find_runs(memoryview(body)):
        table = np.frombuffer(body, np.uint8, end - begin, begin).reshape(-1, size)
        first = table[0].copy()
        is_integer = first[value - 1] == _TAG_INT
        first[time : time + 8] = first[value : value + 8] = 0
        runs.append(_Run(begin - at, len(table), size, time, value))
        other += [body[at:begin], first.tobytes()]
        times.append(_differences(_words(table, time)))
        words = _words(table, value)
        values.append(_differences(words) if is_integer else words)
        at = end
        in_planes += end - begin
    if 2 * in_planes < len(body):
        return None
    other.append(body[at:])
    head = _HEAD.pack(len(runs)) + b"".join(_RUN.pack(*run) for run in runs)
    return b"".join((head, *other, _planes(times), _planes(values)))


def join_planes(data: bytes, max_bytes: int, check: Check = no_check) -> bytes:
    """Return the request that `split_planes` coded.

    Args:
        data: Coded form.
        max_bytes: Maximum size of the result in bytes.
        check: Function that is called for each run and can end the work by raising an error.

    Raises:
        DecodedTooLargeError: The result would exceed `max_bytes`.
        EncodingError: The data is not in this form.
    """
    runs, at = _read_runs(data)
    points = sum(run.points for run in runs)
    gaps = sum(run.gap + run.size for run in runs)
    planes_at = len(data) - 16 * points
    tail = planes_at - at - gaps
    if tail < 0:
        raise EncodingError("the planes are shorter than the points need")
    if gaps + tail + sum((run.points - 1) * run.size for run in runs) > max_bytes:
        raise DecodedTooLargeError(f"the request has more than {max_bytes} bytes when decoded")
    times = _unplaned(data, planes_at, points)
    values = _unplaned(data, planes_at + 8 * points, points)
    parts: list[bytes] = []
    done = 0
    for gap, count, size, time, value in runs:
        check()
        parts.append(data[at : at + gap])
        first = np.frombuffer(data, np.uint8, size, at + gap)
        table = np.tile(first, (count, 1))
        own = slice(done, done + count)
        numbers = np.cumsum(values[own], dtype=np.uint64) if first[value - 1] == _TAG_INT else values[own]
        table[:, time : time + 8] = np.cumsum(times[own], dtype=np.uint64).view(np.uint8).reshape(-1, 8)
        table[:, value : value + 8] = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, 8)
        parts.append(table.tobytes())
        at += gap + size
        done += count
    parts.append(data[at:planes_at])
    return b"".join(parts)


def _read_runs(data: bytes) -> tuple[list[_Run], int]:
    """Return the runs of a coded request, and the offset after them."""
    count = _HEAD.unpack_from(data)[0] if len(data) >= _HEAD.size else -1
    end = _HEAD.size + count * _RUN.size
    if not 0 <= count <= _MOST_RUNS or end > len(data):
        raise EncodingError("the number of runs is invalid")
    runs = [_Run(*run) for run in _RUN.iter_unpack(data[_HEAD.size : end])]
    for run in runs:
        if run.points < _LEAST_POINTS or run.time + 8 > run.size or not 1 <= run.value <= run.size - 8:
            raise EncodingError("a run is invalid")
    return runs, end


def _find_runs(body: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the beginning and end of each gauge's points, their size, and the offsets of the time and value in a point.

    Stop if the first metrics have few points each, because finding all metrics of a wide row takes long.
    """
    runs = covered = 0
    for index, (begin, end) in enumerate(_metrics(body, 0, len(body), 0)):
        if runs == _MOST_RUNS or (index >= _METRICS_TO_TRY and 2 * covered < begin):
            return
        for field in iterate_some_fields(body, begin, end):
            if field.number != _GAUGE or field.wire != _LEN:
                continue
            points = find_points(body, field.content, field.end, _POINT_TAG)
            if points is not None and (field.end - field.content) // points[0] >= _LEAST_POINTS:
                yield field.content, field.end, *points
                runs += 1
                covered += field.end - field.content


def _metrics(body: memoryview, begin: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
    for field in iterate_some_fields(body, begin, end):
        if field.number != _PATH[depth] or field.wire != _LEN:
            continue
        if depth + 1 == len(_PATH):
            yield field.content, field.end
        else:
            yield from _metrics(body, field.content, field.end, depth + 1)


def _words(table: NDArray[np.uint8], offset: int) -> NDArray[np.uint64]:
    return np.ascontiguousarray(table[:, offset : offset + 8]).view("<u8").reshape(-1)


def _differences(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the first word, and the difference of each further word from the one before it, modulo 2**64."""
    return np.diff(words, prepend=np.uint64(0))


def _planes(words: list[NDArray[np.uint64]]) -> bytes:
    if not words:
        return b""
    return np.concatenate(words).view(np.uint8).reshape(-1, 8).T[::-1].tobytes()


def _unplaned(data: bytes, offset: int, count: int) -> NDArray[np.uint64]:
    planes = np.frombuffer(data, np.uint8, 8 * count, offset).reshape(8, count)
    return np.ascontiguousarray(planes[::-1].T).view("<u8").reshape(-1)
