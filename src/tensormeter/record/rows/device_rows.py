"""The short way of a row with values of a device: for a key set, and types, that have been logged before.

The general way asks of every value what it is. A writer knows what to expect, sees that it is so, claims the row and launches
the copies; whatever is different, it leaves to the general way, having done nothing.
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
    """Two forms of the same.

    Attributes:
        write: Writes a row of values at a step, an int of 64 bits, for whoever may write to the lane. Returns whether it has;
            if not, nothing has happened.
        log: Takes the place of `Recorder.log`.
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
    """
    Args:
        lane: Where the rows go.
        layout: Of the rows; first the columns of numbers, then `D` columns.
        kinds: Of the numbers, as for `Lane.make_writer`.
        tensors: Examples for the other columns, on one device; equal dtypes are neighbours.
        copy: Given the word of the row's first value that is to come, and the tensors. Does not raise what a device says.
        fallback: Called by `log` for every row that is not exactly so.
        last_step: One int64, which keeps the step of the last row.
        cost: Of calls of `log`.
        notices: Told of calls of `log` that are slow.
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

    def is_expected(found: Sequence[Any]) -> bool:
        for kind, number in zip(kinds, found, strict=False):
            if number.__class__ is not (float if kind == "d" else int) or kind_of(number) != kind:
                return False
            if kind == "q" and not -_INT64 <= number < _INT64:
                return False
        for dtype, value in zip(dtypes, found[hosts:], strict=True):
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
            found = fetch(values)
            if not is_expected(found):
                return False
        except Exception:  # other keys; or CUDA is broken: the general way will say so
            return False
        word = write_words(layout, pack(*found[:hosts], *pending) if hosts else all_pending, step)
        if word is None:
            return False
        last_step[0] = step
        copy(word + hosts, found[hosts:])
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
    return lambda values: (values[name],)
