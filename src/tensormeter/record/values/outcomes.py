"""The possible results of classifying a logged value, other than a host number."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tensormeter.ring.format import Drop

if TYPE_CHECKING:
    import torch

__all__ = ["Deferred", "DeviceValue", "Refused"]


class Refused(Exception):  # noqa: N818 - an outcome of `classify`, not an error that leaves this package
    """Raised when a value cannot be recorded. The message gives the reason and the remedy.

    Attributes:
        reason: Drop reason under which the loss is counted.
    """

    def __init__(self, message: str, reason: Drop = Drop.UNSUPPORTED_VALUE) -> None:
        super().__init__(message)
        self.reason = reason


class DeviceValue:
    """A one-element tensor whose value the device may still be computing.

    Attributes:
        tensor: One-element tensor on a device.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: "torch.Tensor") -> None:
        self.tensor = tensor


class Deferred:
    """A value that becomes available later.

    Attributes:
        poll: Function that returns None until the value is available, and then returns the value. It never blocks, and raises
            an error if the value cannot become available.
    """

    __slots__ = ("poll",)

    def __init__(self, poll: Callable[[], float | None]) -> None:
        self.poll = poll
