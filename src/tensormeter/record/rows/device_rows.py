"""A fast path for rows with device values. It is used once a row with the same keys and types has been logged.

The general path classifies every value. A writer on the fast path only checks that the values have the expected types, claims
the space for the row and launches the copies. The general path handles rows with unexpected values.
"""

import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tensormeter.record.dynamo import break_graph
from tensormeter.record.log_timing import LogTiming, Stopwatch
from tensormeter.record.rows.lane import ABANDONED, Lane, Writer
from tensormeter.record.values.classify import kind_of
from tensormeter.record.warn_once import WarnOnce
from tensormeter.ring.format import PENDING
from tensormeter.ring.layout import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceWriter", "make_device_writer"]

_INT64: Final = 1 << 63


class DeviceWriter(NamedTuple):
    """A writer for rows with device values, in two forms.

    Attributes:
        write: Function that writes a row of values with a 64-bit step. The calling thread must be allowed to write to the lane.
            If there are unexpected values, or if the lane has no room, the function writes nothing and returns False.
        log: Function that has the same arguments as `Recorder.log` and replaces it.
    """

    write: Callable[[Any, int], bool]
    log: Writer


def make_device_writer(
    lane: Lane,
    layout: Layout,
    kinds: str,
    tensors: "Sequence[torch.Tensor]",
    copy: "Callable[[int, Sequence[torch.Tensor]], None]",
    *,
    fallback: Writer,
    last_step: "array[int]",
    cost: LogTiming,
    notices: WarnOnce,
) -> DeviceWriter:
    """Make a writer for rows with values from one device.

    Args:
        lane: Lane of the rows.
        layout: Layout of the rows, with the number columns first and the `D` columns last.
        kinds: Kinds of the numbers (see `Lane.make_writer`).
        tensors: Example tensors for the `D` columns, all on the same device. Tensors of the same dtype must be adjacent.
        copy: Function that copies tensors to consecutive words, given the index of the first word. It must not raise device
            errors.
        fallback: Function that `log` calls for unexpected values.
        last_step: Array that contains only the step of the last row, as int64.
        cost: Counter for the durations of `log` calls.
        notices: Object that warns about slow `log` calls.
    """
    import torch

    count, hosts = len(layout.names), len(kinds)
    fetch = itemgetter(*layout.names) if count > 1 else _only(layout.names[0])
    dtypes, device = [tensor.dtype for tensor in tensors], tensors[0].get_device()
    pending = (PENDING,) * len(tensors)
    pack = struct.Struct(f"<{layout.codes.replace('D', 'q')}").pack
    all_pending = pack(*pending) if not hosts else b""
    cursor, write_words = lane.cursor, lane.write_words
    tensor_type, strided = torch.Tensor, torch.strided
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    is_capturing = torch.cuda.is_current_stream_capturing
    get_ident, owner = threading.get_ident, lane.owner

    def is_expected(row: Sequence[Any]) -> bool:
        for kind, number in zip(kinds, row, strict=False):
            if number.__class__ is not (float if kind == "d" else int) or kind_of(number) != kind:
                return False
            if kind == "q" and not -_INT64 <= number < _INT64:
                return False
        for dtype, value in zip(dtypes, row[hosts:], strict=True):
            if (
                value.__class__ is not tensor_type
                or value.dtype is not dtype
                or value.get_device() != device
                or value.layout is not strided
                or (value.dim() and value.numel() != 1)
                or is_wrapped(value)
            ):
                return False
        return device < 0 or not is_capturing()

    def write(values: Any, step: int) -> bool:
        if values.__class__ is not dict or len(values) != count or cursor[1] == ABANDONED:
            return False
        try:
            row = fetch(values)
            if not is_expected(row):
                return False
        except Exception:  # other keys, or a CUDA error, which the general path reports
            return False
        word = write_words(layout, pack(*row[:hosts], *pending) if hosts else all_pending, step)
        if word is None:
            return False
        last_step[0] = step
        copy(word + hosts, row[hosts:])
        return True

    def log(values: Any, step: Any = None, *, every: int | None = None, reduce: str | None = None) -> None:
        watch = Stopwatch()
        if every is not None or get_ident() != owner:
            fallback(values, step, every=every, reduce=reduce)
            return
        given = last_step[0] + 1 if step is None else step
        if given.__class__ is not int or not -_INT64 <= given < _INT64 or not write(values, given):
            fallback(values, step)
            return
        watch.stop()
        cost.add(watch.duration)
        if watch.slow:
            notices.slow(values, watch)

    break_graph(log)
    return DeviceWriter(write, log)


def _only(name: str) -> Callable[[Any], tuple[Any]]:
    """Make a function like `itemgetter` that returns a tuple even for a single name."""
    return lambda values: (values[name],)
