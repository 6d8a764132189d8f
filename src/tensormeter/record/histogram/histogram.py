"""The `Histogram` class, for logging the distribution of many values under one name."""

import array
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tensormeter.record.device.event_copies import EVENT_DEVICES
from tensormeter.record.histogram.counting import MOST_ON_DEVICE, Counted, array_pieces, count_on_host, tensor_pieces
from tensormeter.record.values.classify import Refused, as_plain_tensor, check_plain
from tensormeter.record.values.number_types import with_native_numbers
from tensormeter.ring.histogram_buckets import DOUBLE, EXPLICIT, SINGLE, SPARSE, TABLES, Table

if TYPE_CHECKING:
    import torch

__all__ = ["CountedOnDevice", "DeviceDistribution", "Histogram", "HostDistribution"]

_MOST_BUCKETS: Final = 4096
"""Maximum number of buckets in a precomputed histogram. Every point contains the bounds of all buckets."""


_MUCH_SMALLER: Final = 2
"""Factor by which a distribution must shrink to be stored without its empty bins."""


class HostDistribution(NamedTuple):
    """A distribution that has been counted on the host.

    Attributes:
        code: Code of the counts column.
        words: Contents of the counts column, as bytes.
        statistics: Sum, minimum and maximum; None if the row has no column for these statistics.
    """

    code: str
    words: bytes
    statistics: tuple[float, float, float] | None

    def compact(self) -> "HostDistribution":
        """Return the distribution with only its occupied bins if this is much smaller, and otherwise itself."""
        if self.code not in TABLES:
            return self
        import numpy as np

        counts = np.frombuffer(self.words, np.int32)
        occupied = np.flatnonzero(counts)
        if _MUCH_SMALLER * (len(occupied) + 1) > len(self.words) // 8:
            return self
        words = struct.pack("<q", ord(self.code)) + (occupied << 32 | counts[occupied]).astype("<i8").tobytes()
        return self._replace(code=SPARSE, words=words)


class DeviceDistribution(NamedTuple):
    """A tensor on a device whose elements have not been counted yet.

    Attributes:
        tensor: Tensor to count.
        table: Table of the bins.
    """

    tensor: "torch.Tensor"
    table: Table


class CountedOnDevice(NamedTuple):
    """A distribution that has been counted on a device.

    Attributes:
        counts: Counts as int32 with shape (bins,).
        statistics: Sum, minimum and maximum in the device's `accumulator_dtype`.
        table: Table of the bins.
    """

    counts: "torch.Tensor"
    statistics: "torch.Tensor"
    table: Table


class Histogram:
    """The distribution of many values under one name: ``run.log({"gradients": Histogram(tensor)})``.

    The log call counts the values where they are stored, and copies only the counts. Counting a CUDA tensor takes a handful of
    asynchronous launches on the current stream. Nothing waits, and the tensor may change after the call. MPS and XPU tensors
    are also counted on their device, and later log calls fetch the counts. On MPS, sums are computed in float32, and 32-bit and
    64-bit integers cannot be counted. The calling thread counts tensors and arrays in host memory, which takes about 7 ns per
    value.

    The result is an OpenTelemetry exponential histogram with up to 160 buckets on each side and exact bucket boundaries. The
    scale is at most 3 for float32 and for formats that float32 represents exactly (8 and 16 bits, bool). The scale is at most 2
    for float64 and for 32-bit and 64-bit integers, which are converted to the nearest float64. Magnitudes up to 2**-64
    (5.4e-20) count as zero. The histogram excludes NaN and infinities, and the gauge `tensormeter.histogram.nonfinite` counts
    them. If the values include NaN or infinities, the histogram has no sum, minimum or maximum.

    When histograms are reduced over several calls (`every=`, `define_metric`), `mean` and `sum` merge all values into one
    distribution, and `last` keeps the last distribution. `min` and `max` are refused. Precomputed histograms are merged as long
    as their edges stay the same.

    A precomputed pair of counts and edges becomes a histogram with explicit buckets, and without a sum, minimum or maximum.
    NumPy's buckets include their lower edge, but OpenTelemetry's buckets include their upper edge. A value that lies exactly on
    an edge therefore appears in the bucket above the edge, instead of the one below.
    """

    __slots__ = ("_np_histogram", "_values")

    def __init__(self, values: Any = None, *, np_histogram: tuple[Any, Any] | None = None) -> None:
        """
        Args:
            values: Tensor or NumPy array of real numbers with any shape, or a sequence of numbers. The values are not copied.
            np_histogram: Result of `numpy.histogram`, to be passed instead of `values`: integer counts with shape (k,), and
                edges with shape (k + 1,).

        The constructor never raises for its arguments. If they are invalid, `log` warns.
        """
        self._values = values
        self._np_histogram = np_histogram

    def reduce(self) -> HostDistribution | DeviceDistribution:
        """Count values on the host. For a tensor on a device, only check that it can be counted. Blocks only while counting.

        Raises:
            Refused: The values cannot be counted.
        """
        values, pair = self._values, self._np_histogram
        if (values is None) == (pair is None):
            raise Refused("expected either values or np_histogram=(counts, edges)")
        if pair is not None:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise Refused(f"np_histogram: expected (counts, edges), got a value of type {type(pair).__name__}")
            return _explicit(*pair)
        tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor_type is not None and isinstance(values, tensor_type):
            return _tensor(as_plain_tensor(values))
        return _array(values)


def _tensor(tensor: "torch.Tensor") -> HostDistribution | DeviceDistribution:
    import torch

    check_plain(tensor)
    wide = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)
    table = DOUBLE if tensor.dtype in wide else SINGLE
    if tensor.numel() == 0:
        return _exponential(Counted(bytes(4 * table.bins), (0.0, float("nan"), float("nan"))), table)
    if tensor.numel() > MOST_ON_DEVICE:
        raise Refused(
            f"a tensor of {tensor.numel():,} elements is too large; log parts of at most {MOST_ON_DEVICE:,} elements"
        )
    if tensor.device.type == "mps" and table is DOUBLE:
        raise Refused(
            f"cannot create a Histogram of {tensor.dtype} on {tensor.device}; convert the tensor to float32 with "
            ".float()"
        )
    if tensor.is_cuda or tensor.device.type in EVENT_DEVICES:
        return DeviceDistribution(tensor, table)
    if tensor.device.type != "cpu":
        raise Refused(
            f"cannot create a Histogram of a tensor on {tensor.device} without waiting for the device; "
            "copy the tensor with .cpu()"
        )
    return _exponential(count_on_host(tensor_pieces(tensor, table), table), table)


def _array(values: Any) -> HostDistribution:
    import numpy as np

    if not isinstance(values, (np.ndarray, array.array, Sequence)) or isinstance(values, str | bytes):
        raise Refused(
            f"cannot create a Histogram of a {type(values).__name__}; pass a tensor, an array or a sequence of numbers"
        )
    first = None if isinstance(values, np.ndarray) or not len(values) else values[0]
    if first is not None and type(first).__module__.partition(".")[0] == "torch":
        raise Refused(
            "cannot create a Histogram of a sequence of tensors; combine them with torch.stack() or torch.cat()"
        )
    if getattr(values, "mask", None) is not None:
        raise Refused("cannot create a Histogram of a masked array; convert it with .compressed()")
    try:
        elements = np.asarray(values)
    except ValueError as error:
        raise Refused(f"cannot create a Histogram: NumPy cannot convert the values to an array ({error})") from None
    if elements.size == 0 and elements.dtype.kind not in "fiub":
        elements = elements.astype(np.float64)
    elements = with_native_numbers(elements)
    if elements.dtype.kind not in "fiub":
        raise Refused(f"cannot create a Histogram of dtype {elements.dtype}; pass real numbers with at most 64 bits")
    if elements.size > MOST_ON_DEVICE:
        raise Refused(
            f"an array of {elements.size:,} elements is too large; log parts of at most {MOST_ON_DEVICE:,} elements"
        )
    single = elements.dtype.itemsize <= (4 if elements.dtype.kind == "f" else 2)
    table = SINGLE if single else DOUBLE
    if elements.size == 0:
        return _exponential(Counted(bytes(4 * table.bins), (0.0, float("nan"), float("nan"))), table)
    return _exponential(count_on_host(array_pieces(elements, table), table), table)


def _exponential(counted: Counted, table: Table) -> HostDistribution:
    return HostDistribution(table.code, counted.counts, counted.statistics)


def _explicit(counts: Any, edges: Any) -> HostDistribution:
    """Check the counts and edges of a precomputed histogram, and pack the edges, followed by the counts, into bytes."""
    import numpy as np

    counts, edges = np.asarray(counts), np.asarray(edges)
    if counts.ndim != 1 or not 0 < len(counts) <= _MOST_BUCKETS or edges.shape != (len(counts) + 1,):
        raise Refused(
            f"np_histogram: expected counts of shape (k,) and edges of shape (k + 1,), k from 1 to {_MOST_BUCKETS}; "
            f"got {counts.shape} and {edges.shape}"
        )
    if edges.dtype.kind not in "fiu" or not np.isfinite(edges).all() or not (edges[1:] > edges[:-1]).all():
        raise Refused("the edges of np_histogram must be finite and increasing")
    integers = counts.astype(np.int64, casting="unsafe") if counts.dtype.kind in "fiu" else None
    if integers is None or (integers != counts).any() or (integers < 0).any():
        raise Refused(
            "the counts of np_histogram must be nonnegative integers; call np.histogram without weights or density=True"
        )
    words = struct.pack(f"<{len(edges)}d{len(counts)}q", *edges.tolist(), *integers.tolist())
    return HostDistribution(EXPLICIT, words, None)
