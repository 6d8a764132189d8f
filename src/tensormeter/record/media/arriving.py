"""Media whose data may still be on its way from a device."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tensormeter.conventions.limits import PIXEL_BYTES, TABLE_IMAGES, too_large
from tensormeter.record.device.event_copies import EVENT_DEVICES, copy_to_host, record_event
from tensormeter.record.media.item import Media, refusal_of
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

__all__ = ["ArrivingMedia", "is_on_device"]

_DEVICES: Final = ("cuda", *EVENT_DEVICES)


class ArrivingMedia(Media):
    """A media item that reads its data in the constructor or, if the data is on a device, once a copy has arrived on the host.

    The copy is taken in stream order, so later changes to a tensor do not affect the item. Nothing waits for the device.
    """

    _arrival: tuple[Callable[[], bool], Callable[[], None]] | None = None
    """Function that returns whether the copies have arrived, and function that reads them; None if the data has been read."""

    def is_ready(self) -> bool:
        """Return whether the data has been read. Reads it if it has just arrived. Never waits for a device."""
        if self._arrival is None:
            return True
        has_arrived, read = self._arrival
        try:
            if not has_arrived():
                return False
        except Exception as error:  # a device error
            read = partial(self._fail, refusal_of(error))
        read()
        self._arrival = None  # last, because another thread may be about to pack the item
        return True

    def _begin(self, data: Any, read: Callable[[Any], None]) -> None:
        """Read the data now or when it has arrived. Never raises.

        Args:
            data: Argument of the constructor.
            read: Function that reads the data into this object. It may raise anything.
        """
        try:
            copies, has_arrived = _copies_of(data)
        except Exception as error:
            self._fail(refusal_of(error))
            return
        if has_arrived is None:
            self._read(data, read)
        else:
            self._arrival = has_arrived, partial(self._read, copies, read)

    def _read(self, data: Any, read: Callable[[Any], None]) -> None:
        try:
            read(data)
        except Exception as error:  # the data's own code may raise anything
            self._fail(refusal_of(error))

    def _check_arrival(self) -> None:
        """Check that the data has been read.

        Raises:
            Refused: It has not arrived yet, for example because a table does not wait for its images.
        """
        if not self.is_ready():
            raise Refused("its data is still on the device; pass a copy on the CPU, such as tensor.cpu()")

    def _fail(self, refusal: Refused) -> None:
        """Keep the reason why the item cannot be recorded. `pack` raises it."""
        raise NotImplementedError


def _copies_of(data: Any) -> tuple[Any, Callable[[], bool] | None]:
    """Launch copies of data that is on a device.

    Returns:
        The data with copies instead of tensors, and a function that returns whether they have arrived. The function is None if
        nothing is on a device.

    Raises:
        Refused: The data is too large, or a CUDA graph is being captured.
    """
    kind = type(data)
    if issubclass(kind, ArrivingMedia):
        return data, None if data.is_ready() else data.is_ready
    if issubclass(kind, list | tuple):
        if not any(map(_may_arrive, data[:TABLE_IMAGES])):
            return data, None
        _check_size(sum(item.nbytes for item in data if is_on_device(item)))
        copies = [_copies_of(item) for item in data]
        checks = [check for _, check in copies if check is not None]
        return [copy for copy, _ in copies], (lambda: all(check() for check in checks)) if checks else None
    if is_on_device(data):
        return _copy(data)
    return data, None


def _may_arrive(item: Any) -> bool:
    return issubclass(type(item), ArrivingMedia) or is_on_device(item)


def is_on_device(value: Any) -> bool:
    """Return whether a value is a plain tensor on a device from which it can be copied without waiting."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return value.device.type in _DEVICES and value.layout is torch.strided and not value.is_quantized


def _copy(tensor: Any) -> tuple[Any, Callable[[], bool]]:
    import torch

    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise Refused("a CUDA graph is being captured; log after the replay")
    _check_size(tensor.nbytes)
    with torch.no_grad():
        host = copy_to_host(tensor.detach())
        return host, record_event(tensor.device).query


def _check_size(size: int) -> None:
    if size > PIXEL_BYTES:
        raise Refused(
            too_large(size, PIXEL_BYTES, "the data on the device", "log less at a time"), Drop.MEDIA_TOO_LARGE
        )
