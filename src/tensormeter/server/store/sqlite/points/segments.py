"""Encoding of a series' points as segments of compressed bytes.

Times are stored as differences. Times and values are split into byte planes (all first bytes, all second bytes, ...)
and compressed with zstd. Exponents and evenly spaced times change slowly, so their planes compress well. For a loss
curve with jittered times, we measured 2.3 bytes for a time, and 6.9 bytes for a value. Values that came from float32
take 3.2 bytes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Blobs, Column, Points

__all__ = [
    "BLOBS",
    "FLOATS",
    "INTEGERS",
    "SEGMENT_POINTS",
    "Segment",
    "compress_words",
    "decode_blobs",
    "decode_mask",
    "decode_segment",
    "decode_times",
    "decode_words",
    "decompress_words",
    "encode_segment",
    "inflate",
    "join_planes",
    "segment_capacity",
    "segment_points",
]

SEGMENT_POINTS: Final = 65_536
"""Maximum number of points in a segment. The values take half a MiB and are decoded in about a millisecond."""

SEGMENT_BLOBS: Final = 1024
"""Maximum number of distributions in a segment. Each distribution takes a few hundred bytes."""

FLOATS, INTEGERS, MIXED, BLOBS = 0, 1, 2, 3
_LEVEL: Final = 1
_BLOB_LEVEL: Final = 3
_MAX_BLOBS: Final = 1 << 30


class _Decoder(threading.local):
    """A decompressor for each thread. Creating one takes half as long as decompressing a segment."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_decoder: Final = _Decoder()


@dataclass(frozen=True)
class Segment:
    """A compressed block of points from one series, stored as a row of the table `chunk`.

    Attributes:
        n: Number of points.
        t_min: Earliest time, in nanoseconds since the Unix epoch.
        t_max: Latest time, in nanoseconds since the Unix epoch.
        kind: 0 for float64 only, 1 for int64 only, 2 for both, 3 for distributions.
        times: Compressed time differences.
        words: Compressed values. For distributions, the lengths (uint32) and then the bytes of all distributions,
            compressed together.
        integers: Compressed bit mask that marks int64 words; empty unless both types occur.
        series: Row ID of the series if the segment was read from the table, or None.
    """

    n: int
    t_min: int
    t_max: int
    kind: int
    times: bytes
    words: bytes
    integers: bytes
    series: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether the segment has the maximum number of points and therefore never changes."""
        return self.kind != BLOBS and self.n >= SEGMENT_POINTS


def segment_capacity(points: Column) -> int:
    """Return the maximum number of points in a segment of this column's type."""
    return SEGMENT_BLOBS if isinstance(points, Blobs) else SEGMENT_POINTS


def encode_segment(points: Column) -> Segment:
    """Encode 1 to `segment_capacity` points, given in ascending order of time."""
    kind, words, integers = BLOBS, b"", b""
    if isinstance(points, Blobs):
        lengths = np.array([len(blob) for blob in points.blobs], "<u4")
        words = zstandard.compress(lengths.tobytes() + b"".join(points.blobs), _BLOB_LEVEL)
    else:
        assert isinstance(points, Points)
        kind = INTEGERS if points.integers.all() else MIXED if points.integers.any() else FLOATS
        words = _compress(points.words)
        if kind == MIXED:
            integers = zstandard.compress(np.packbits(points.integers).tobytes(), _LEVEL)
    return Segment(
        n=len(points),
        t_min=int(points.times[0]),
        t_max=int(points.times[-1]),
        kind=kind,
        times=_compress(np.diff(points.times, prepend=points.times[:1])),
        words=words,
        integers=integers,
    )


def decode_segment(segment: Segment) -> Points:
    """Decode a segment of numbers, preserving every bit.

    Raises:
        DamagedError: The bytes are not a valid segment of numbers.
    """
    with _about(segment):
        return Points(decode_times(segment), decode_words(segment), decode_mask(segment))


def decode_blobs(segment: Segment) -> Blobs:
    """Decode a segment of distributions. Raises the same errors as `decode_segment`."""
    with _about(segment):
        packed = inflate(segment.words, None)
        lengths = np.frombuffer(packed[: 4 * segment.n], "<u4")
        ends = np.cumsum(lengths, dtype=np.int64) + 4 * segment.n
        if len(lengths) != segment.n or ends[-1] != len(packed):
            raise DamagedError("a segment: the lengths of its values do not match its size")
        starts = ends - lengths
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        return Blobs.of(decode_times(segment), [packed[start:end] for start, end in pairs])


def segment_points(segment: Segment) -> Column:
    """Decode a segment of any kind. Raises the same errors as `decode_segment`."""
    return decode_blobs(segment) if segment.kind == BLOBS else decode_segment(segment)


def decode_words(segment: Segment) -> NDArray[np.int64]:
    """Decode the values of a segment of numbers. Raises the same errors as `decode_segment`, without a series."""
    return _decompress(segment.words, segment.n)


def decode_mask(segment: Segment) -> NDArray[np.bool_]:
    """Decode which values of a segment of numbers are integers. Raises the same errors as `decode_words`."""
    if segment.kind != MIXED:
        return np.full(segment.n, segment.kind == INTEGERS)
    packed = np.frombuffer(inflate(segment.integers, (segment.n + 7) // 8), np.uint8)
    return np.unpackbits(packed, count=segment.n).view(np.bool_)


def decode_times(segment: Segment) -> NDArray[np.int64]:
    """Decode the times of a segment of any kind. Raises the same errors as `decode_words`."""
    times: NDArray[np.int64] = np.cumsum(_decompress(segment.times, segment.n)) + segment.t_min
    if len(times) and times[-1] != segment.t_max:
        raise DamagedError("a segment: the time of its last point does not match its row")
    return times


@contextmanager
def _about(segment: Segment) -> Iterator[None]:
    """Add a segment's series to errors raised inside the block."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(str(error), series=segment.series) from None


def compress_words(words: NDArray[np.int64]) -> bytes:
    """Compress words as byte planes. The array may have any shape and is read in C order."""
    return _compress(words.reshape(-1))


def decompress_words(blob: bytes) -> bytes:
    """Return the bytes of the words that were given to `compress_words`. Raises the same errors as `decode_segment`."""
    planes = np.frombuffer(inflate(blob, None), np.uint8)
    if len(planes) % 8:
        raise DamagedError("rollups: the decompressed size is not a multiple of 8 bytes")
    return planes.reshape(8, -1).T.tobytes()


def _compress(column: NDArray[np.int64]) -> bytes:
    planes = np.ascontiguousarray(column).astype("<i8", copy=False).view(np.uint8).reshape(-1, 8).T
    return zstandard.compress(planes.tobytes(), _LEVEL)


def _decompress(blob: bytes, n: int) -> NDArray[np.int64]:
    return join_planes(inflate(blob, 8 * n), n)


def join_planes(data: bytes, n: int) -> NDArray[np.int64]:
    """Return the words of one or more columns, each with n words and given as 8 byte planes."""
    if len(data) != 8 * n:
        return (
            np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, 8, n).swapaxes(1, 2)).view("<i8").reshape(-1)
        )
    rows = np.zeros((n, 8), np.uint8)
    planes = np.frombuffer(data, np.uint8).reshape(8, n)
    zeros = bytes(n)
    for index, plane in enumerate(planes):
        # Most planes are zero, such as high bytes of differences and low bytes of former float32s.
        if data[index * n : (index + 1) * n] != zeros:
            rows[:, index] = plane
    return rows.view("<i8").reshape(n).astype(np.int64, copy=False)


def inflate(blob: bytes, size: int | None) -> bytes:
    """Decompress a blob to exactly `size` bytes, or to any number of bytes up to 1 GiB if `size` is None.

    The size in the frame's header is checked first, so that damaged data cannot make zstd allocate more memory.
    """
    try:
        claimed = zstandard.frame_content_size(blob)
        if claimed == size or (size is None and 0 <= claimed <= _MAX_BLOBS):
            return _decoder.zstd.decompress(blob)
    except zstandard.ZstdError as error:
        raise DamagedError(f"a segment: {error}") from None
    expected = f"at most {_MAX_BLOBS}" if size is None else size
    declared = "no size" if claimed < 0 else claimed
    raise DamagedError(f"a segment: expected {expected} bytes, but its header declares {declared}")
