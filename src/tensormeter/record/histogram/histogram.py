"""`Histogram`: many values that are logged as one, as a distribution."""

import array
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tensormeter.errors import UsageError
from tensormeter.record.device.event_copies import EVENT_DEVICES
from tensormeter.record.histogram.counting import MOST_ON_DEVICE, Counted, array_pieces, count_on_host, tensor_pieces
from tensormeter.record.values.classify import Refused, check_plain
from tensormeter.ring.histogram_buckets import DOUBLE, EXPLICIT, SINGLE, Table

if TYPE_CHECKING:
    import torch

__all__ = ["CountedOnDevice", "DeviceDistribution", "Histogram", "HostDistribution"]

_MOST_BUCKETS: Final = 4096
"""Of ready-made histograms: their bounds are sent with every point."""


class HostDistribution(NamedTuple):
    """What a row holds of a distribution that is counted.

    Attributes:
        code: Of the column of counts.
        words: Its words, as bytes.
        statistics: Sum, minimum and maximum; None if that column is missing.
    """

    code: str
    words: bytes
    statistics: tuple[float, float, float] | None


class DeviceDistribution(NamedTuple):
    """What is still to be counted, on the device where it is."""

    tensor: "torch.Tensor"
    table: Table


class CountedOnDevice(NamedTuple):
    """What has been counted there.

    Attributes:
        counts: Of shape (bins,), int32.
        statistics: Sum, minimum and maximum; of the device's `accumulator_dtype`.
        table: Of the bins.
    """

    counts: "torch.Tensor"
    statistics: "torch.Tensor"
    table: Table


class Histogram:
    """The distribution of many values, to be logged under one name: ``run.log({"gradients": Histogram(tensor)})``.

    Values are counted when they are logged, where they are, and only counts travel. For a CUDA tensor that is a handful of
    asynchronous launches on the current stream: nothing waits, and what happens to the tensor afterwards does not matter. For
    a tensor or array in the host's memory it takes the calling thread some 7 ns for each value. MPS and XPU devices count as
    well, and the log calls that follow fetch the counts; MPS adds up in float32, and takes no integers of 32 and 64 bits.

    What arrives is an OpenTelemetry exponential histogram of at most 160 buckets a side, exact in the mapping of its buckets:
    float32, and what float32 holds exactly (8 and 16 bits, bool), in buckets of scale 3 or less; float64, and integers of 32
    and 64 bits (as the nearest float64), of scale 2 or less. Magnitudes up to 2**-64 (5.4e-20) count as zero. NaN and
    infinities are left out and counted apart, in the gauge `tensormeter.histogram.nonfinite`; sum, minimum and maximum are
    then left out too.

    Over steps (`every=`, `define_metric`), `mean` and `sum` make one distribution of all values together, and `last` keeps the
    last; `min` and `max` are refused. Ready-made histograms are put together as long as their edges stay the same.

    A ready-made pair of counts and edges becomes a histogram with explicit buckets. NumPy's buckets are closed below and
    OpenTelemetry's above, so values exactly on an edge are shown one bucket off; there are no sum, minimum and maximum.
    """

    __slots__ = ("_np_histogram", "_values")

    def __init__(self, values: Any = None, *, np_histogram: tuple[Any, Any] | None = None) -> None:
        """
        Args:
            values: A tensor or NumPy array of real numbers, of any shape, or a sequence of numbers. It is not copied.
            np_histogram: Instead: what `numpy.histogram` returns, integer counts of shape (k,) and edges of shape (k + 1,).

        Raises:
            UsageError: Both, neither, or no pair.
        """
        if (values is None) == (np_histogram is None):
            raise UsageError("Histogram: expected either values or np_histogram=(counts, edges)")
        if np_histogram is not None and not (isinstance(np_histogram, tuple | list) and len(np_histogram) == 2):
            raise UsageError(f"Histogram: np_histogram: expected (counts, edges), got a {type(np_histogram).__name__}")
        self._values = values
        self._np_histogram = np_histogram

    def reduce(self) -> HostDistribution | DeviceDistribution:
        """Count what is on the host, and look at what is on a device. Blocks for the counting on the host only.

        Raises:
            Refused: The values cannot be counted.
        """
        if self._np_histogram is not None:
            return _explicit(*self._np_histogram)
        values = self._values
        tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor_type is not None and isinstance(values, tensor_type):
            return _tensor(values)
        return _array(values)


def _tensor(tensor: "torch.Tensor") -> HostDistribution | DeviceDistribution:
    import torch

    check_plain(tensor)
    wide = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)
    table = DOUBLE if tensor.dtype in wide else SINGLE
    if tensor.numel() == 0:
        return _exponential(Counted(bytes(4 * table.bins), (0.0, float("nan"), float("nan"))), table)
    if tensor.numel() > MOST_ON_DEVICE:
        raise Refused(f"a tensor of {tensor.numel():,} elements; log parts of at most {MOST_ON_DEVICE:,}")
    if tensor.device.type == "mps" and table is DOUBLE:
        raise Refused(f"a Histogram of {tensor.dtype} on {tensor.device}, which counts in float32: give it .float()")
    if tensor.is_cuda or tensor.device.type in EVENT_DEVICES:
        return DeviceDistribution(tensor, table)
    if tensor.device.type != "cpu":
        raise Refused(
            f"a Histogram of a tensor on {tensor.device}; only CUDA, MPS and XPU devices count without waiting: give it .cpu()"
        )
    return _exponential(count_on_host(tensor_pieces(tensor, table), table), table)


def _array(values: Any) -> HostDistribution:
    import numpy as np

    if not isinstance(values, (np.ndarray, array.array, Sequence)) or isinstance(values, str | bytes):
        raise Refused(f"a Histogram of a {type(values).__name__}; give it a tensor, an array or a sequence of numbers")
    first = None if isinstance(values, np.ndarray) or not len(values) else values[0]
    if first is not None and type(first).__module__.partition(".")[0] == "torch":
        raise Refused("a Histogram of a sequence of tensors; give it torch.stack() or torch.cat() of them")
    if getattr(values, "mask", None) is not None:
        raise Refused("a Histogram of a masked array; give it .compressed()")
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise Refused(f"a Histogram of what is no array ({error})") from None
    if found.size == 0 and found.dtype.kind not in "fiub":
        found = found.astype(np.float64)
    if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
        raise Refused(f"a Histogram of dtype {found.dtype}; give it real numbers of at most 64 bits")
    if found.size > MOST_ON_DEVICE:
        raise Refused(f"an array of {found.size:,} elements; log parts of at most {MOST_ON_DEVICE:,}")
    single = found.dtype.itemsize <= (4 if found.dtype.kind == "f" else 2)
    table = SINGLE if single else DOUBLE
    if found.size == 0:
        return _exponential(Counted(bytes(4 * table.bins), (0.0, float("nan"), float("nan"))), table)
    return _exponential(count_on_host(array_pieces(found, table), table), table)


def _exponential(counted: Counted, table: Table) -> HostDistribution:
    return HostDistribution(table.code, counted.counts, counted.statistics)


def _explicit(counts: Any, edges: Any) -> HostDistribution:
    """Edges, then counts, after a look at whether they can be those of a histogram."""
    import numpy as np

    counts, edges = np.asarray(counts), np.asarray(edges)
    if counts.ndim != 1 or not 0 < len(counts) <= _MOST_BUCKETS or edges.shape != (len(counts) + 1,):
        raise Refused(
            f"np_histogram with counts of shape {counts.shape} and edges of shape {edges.shape}; expected (k,) and (k + 1,), "
            f"k from 1 to {_MOST_BUCKETS}"
        )
    if edges.dtype.kind not in "fiu" or not np.isfinite(edges).all() or not (edges[1:] > edges[:-1]).all():
        raise Refused("np_histogram whose edges are not finite and increasing")
    whole = counts.astype(np.int64, casting="unsafe") if counts.dtype.kind in "fiu" else None
    if whole is None or (whole != counts).any() or (whole < 0).any():
        raise Refused("np_histogram whose counts are not whole numbers; make it without density=True")
    words = struct.pack(f"<{len(edges)}d{len(counts)}q", *edges.tolist(), *whole.tolist())
    return HostDistribution(EXPLICIT, words, None)
