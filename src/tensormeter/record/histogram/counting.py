"""Counting of values into the buckets of `tensormeter.ring.histogram_buckets`, on a device or on the host.

On a device, all shapes are static and the host reads no values, so nothing synchronizes. The code therefore avoids `bincount`,
boolean indexing and `.item()`. The device also computes the bounds itself, so the host uploads no data.
On the host, NumPy counts the values in the calling thread. For large arrays, this is faster than `np.histogram`.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tensormeter.record.device.gather import accumulator_dtype
from tensormeter.ring.histogram_buckets import Table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "MOST_ON_DEVICE",
    "Counted",
    "DeviceTables",
    "add_explicit",
    "add_exponential",
    "array_pieces",
    "count_on_host",
    "tensor_pieces",
]

MOST_ON_DEVICE: Final = (1 << 31) - 1
"""Maximum number of elements in one distribution, because the count of a bin is a 32-bit integer."""

_DEVICE_PIECE: Final = 1 << 23
"""Number of elements that a device counts at once. Counting needs 12 bytes of temporary device memory per element."""

_HOST_PIECE: Final = 1 << 17
"""Number of elements that the host counts at once. This number of elements fits into the CPU cache."""


class Counted(NamedTuple):
    """A distribution that was counted on the host.

    Attributes:
        counts: Bytes of the int32 counts, in the order of the table's bins.
        statistics: Sum, minimum and maximum. Each is NaN if it is not available.
    """

    counts: bytes
    statistics: tuple[float, float, float]


def count_on_host(pieces: Iterable["NDArray[Any]"], table: Table) -> Counted:
    """Count the elements of arrays that have the table's format. Blocks until all elements have been counted.

    Args:
        pieces: Contiguous, non-empty arrays of shape (n,) in native byte order.
        table: Table for float32 or float64.
    """
    import numpy as np

    counts = np.zeros(table.bins, np.int64)
    total, low, high = 0.0, np.inf, -np.inf
    with np.errstate(all="ignore"):  # NaN and infinities are valid values
        cells = _cells(table)
        for piece in pieces:
            total += float(piece.sum(dtype=np.float64))
            low, high = np.minimum(low, piece.min()), np.maximum(high, piece.max())
            for start in range(0, len(piece), _HOST_PIECE):
                counts += np.bincount(cells.bins_of(piece[start : start + _HOST_PIECE]), minlength=table.bins)
    nothing_else = counts[0] + counts[-1] + counts[-2] == 0
    statistics = (total, float(low), float(high)) if nothing_else and counts.any() else (total, np.nan, np.nan)
    return Counted(counts.astype(np.int32).tobytes(), statistics if nothing_else else (np.nan, np.nan, np.nan))


def add_exponential(first: bytes, second: bytes) -> bytes | None:
    """Add the counts of two distributions with the same table. Return None if a bin would overflow."""
    import numpy as np

    counts = np.frombuffer(first, np.int32) + np.frombuffer(second, np.int32).astype(np.int64)
    return None if counts.max() > MOST_ON_DEVICE else counts.astype(np.int32).tobytes()


def add_explicit(first: bytes, second: bytes) -> bytes | None:
    """Add two precomputed histograms. Each consists of the words of its edges, followed by the words of its counts.

    Returns:
        Words of the combined histogram, or None if the edges differ or a count would overflow.
    """
    import numpy as np

    edges = len(first) // 16 * 8 + 8  # size in bytes: there is one more edge than there are counts
    if len(first) != len(second) or first[:edges] != second[:edges]:
        return None
    counts, more = np.frombuffer(first, np.int64, offset=edges), np.frombuffer(second, np.int64, offset=edges)
    if (counts > np.iinfo(np.int64).max - more).any():
        return None
    return first[:edges] + (counts + more).tobytes()


def array_pieces(array: "NDArray[Any]", table: Table) -> Iterator["NDArray[Any]"]:
    """Iterate over pieces of an array, converted to the table's format. Pieces that already have this format are not copied."""
    import numpy as np

    flat, dtype = array.reshape(-1), np.float32 if table.fraction_bits == 23 else np.float64
    for start in range(0, len(flat), _DEVICE_PIECE):
        yield np.ascontiguousarray(flat[start : start + _DEVICE_PIECE], dtype)


def tensor_pieces(tensor: "torch.Tensor", table: Table) -> Iterator["NDArray[Any]"]:
    """Iterate over pieces of a CPU tensor, converted to the table's format."""
    import torch

    for piece in torch.split(tensor.detach().reshape(-1), _DEVICE_PIECE):
        yield _as_format(piece, table).resolve_neg().contiguous().numpy()


class DeviceTables:
    """Counts tensors on devices, and caches the bounds of each table on each device. The bounds take 12 or 68 KiB.

    Thread-safe. A forked child process must not use it.
    """

    def __init__(self) -> None:
        self._bounds: dict[tuple[torch.device, Table], _Bounds] = {}

    def count(self, tensors: Sequence["torch.Tensor"], table: Table) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Launch the counting of tensors on the current stream. Never waits.

        Args:
            tensors: Non-empty tensors on one device, each with up to `MOST_ON_DEVICE` elements.
            table: Table that is suitable for the dtypes of all tensors.

        Returns:
            Counts as int32 with shape (tensors * bins,), and sums, minima and maxima as float64 with shape (tensors, 3). On
            Apple devices, which lack float64, the sums, minima and maxima are float32.
        """
        import torch

        counts, sums, extremes = [], [], []
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            with torch.inference_mode(mode=False):  # the cached bounds are also used outside inference mode
                bounds = self._bounds_on(tensors[0].device, table)
            for tensor in tensors:
                count, total, low, high = _count(tensor.detach().reshape(-1), table, bounds)
                counts.append(count)
                sums.append(total)
                extremes += [low, high]
            limits = torch.stack(extremes).to(accumulator_dtype(tensors[0].device)).view(-1, 2)
            statistics = torch.cat([torch.stack(sums).unsqueeze(1), limits], dim=1)
            return torch.cat(counts), statistics
        finally:
            torch._C._set_grad_enabled(grad)

    def _bounds_on(self, device: "torch.device", table: Table) -> "torch.Tensor":
        import torch

        bounds = self._bounds.get((device, table))
        if bounds is None:
            tensor = bounds_on_device(device, table)
            # PyTorch can trace code for CUDA with fake tensors on a machine without a device. Then there is no stream.
            stream = torch.cuda.current_stream(device) if device.type == "cuda" and _has_cuda() else None
            bounds = self._bounds[device, table] = _Bounds(tensor, stream, stream and stream.record_event())
        elif bounds.stream is not None:
            current = torch.cuda.current_stream(device)
            if current != bounds.stream:  # the stream waits for the bounds; the host does not
                current.wait_event(bounds.ready)
        return bounds.tensor


class _Bounds(NamedTuple):
    """Bounds on a device, with the stream that computes them and an event that was recorded after the computation."""

    tensor: "torch.Tensor"
    stream: "torch.cuda.Stream | None"
    ready: Any


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def bounds_on_device(device: "torch.device", table: Table) -> "torch.Tensor":
    """Compute the bounds between a table's bins on a device. Only scalars are passed to the device, as kernel arguments."""
    import torch

    single = table.fraction_bits == 23
    integer = torch.int32 if single else torch.int64
    lowest, highest = table.lowest + table.bias, table.highest + table.bias
    exponents = torch.arange(lowest, highest, dtype=integer, device=device) << table.fraction_bits
    lower = torch.stack([exponents + fraction for fraction in table.fractions], dim=1).view(-1)
    ends = torch.cat([lower, torch.full((1,), table.largest, dtype=integer, device=device)])
    negative = ends.flip(0) + 1 + (-(1 << 31) if single else -(1 << 63))  # the next larger magnitude, with the sign bit
    infinity = torch.full((1,), table.largest + 1, dtype=integer, device=device)
    return torch.cat([negative, ends, infinity]).view(torch.float32 if single else torch.float64)


def _count(
    flat: "torch.Tensor", table: Table, bounds: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Return a tensor's counts as int32, its sum in `accumulator_dtype`, and its minimum and maximum in the table's format."""
    import torch

    summary, wide = None, accumulator_dtype(flat.device)
    for piece in torch.split(flat, _DEVICE_PIECE):
        values = _as_format(piece, table)
        bins = torch.bucketize(values, bounds, out_int32=True)
        low, high = torch.aminmax(values)
        new = (_count_bins(bins, table.bins), values.sum(dtype=wide), low, high)
        if summary is None:
            summary = new
        else:
            summary = (
                summary[0] + new[0],
                summary[1] + new[1],
                torch.minimum(summary[2], new[2]),
                torch.maximum(summary[3], new[3]),
            )
    assert summary is not None
    return summary


def _count_bins(bins: "torch.Tensor", number: int) -> "torch.Tensor":
    import torch

    if bins.is_cuda:  # integer arithmetic in shared memory: exact and deterministic
        return torch.histc(bins, bins=number, min=0, max=number - 1)
    ones = torch.ones((), dtype=torch.int32, device=bins.device).expand(len(bins))
    return torch.zeros(number, dtype=torch.int32, device=bins.device).index_add_(0, bins, ones)


def _as_format(values: "torch.Tensor", table: Table) -> "torch.Tensor":
    return values.float() if table.fraction_bits == 23 else values.double()


class _Cells:
    """A lookup table for finding bins on the host, which is faster than a binary search.

    A cell consists of all numbers that have the same 16 highest bits. A cell contains at most one bound.

    Attributes:
        split: Bound in each cell, or an arbitrary number if the cell contains no bound.
        bins: Two entries for each cell: the bin of the cell's numbers above the bound, then the bin of all its other numbers.
    """

    def __init__(self, table: Table) -> None:
        import numpy as np

        bits = 32 if table.fraction_bits == 23 else 64
        bounds = _bounds(table)
        first = np.arange(1 << 16, dtype=f"u{bits // 8}") << (bits - 16)
        last = first | ((1 << (bits - 16)) - 1)
        ends = np.stack([np.searchsorted(bounds, words.view(bounds.dtype)) for words in (first, last)])
        self.split = bounds[np.minimum(ends.min(axis=0), len(bounds) - 1)]
        self.bins = np.stack([ends.max(axis=0), ends.min(axis=0)], axis=1).ravel()
        self._halves = bits // 16

    def bins_of(self, values: "NDArray[Any]") -> "NDArray[np.intp]":
        """Find the bin of each value."""
        import numpy as np

        keys = values.view(np.uint16)[self._halves - 1 :: self._halves].astype(np.intp)
        up_to = values <= self.split.take(keys)
        keys += keys
        keys += up_to
        return self.bins.take(keys)


@cache
def _cells(table: Table) -> _Cells:
    return _Cells(table)


@cache
def _bounds(table: Table) -> "NDArray[Any]":
    """Compute the bounds that `bounds_on_device` computes, but on the host with NumPy."""
    import numpy as np

    exponents = (np.arange(table.lowest, table.highest, dtype=np.int64) + table.bias) << table.fraction_bits
    ends = np.append((exponents[:, None] + np.array(table.fractions)).ravel(), table.largest)
    sign = np.int64(-(1 << 31) if table.fraction_bits == 23 else -(1 << 63))
    bits = np.concatenate([ends[::-1] + 1 + sign, ends, [table.largest + 1]])
    return bits.astype(np.int32).view(np.float32) if table.fraction_bits == 23 else bits.view(np.float64)
