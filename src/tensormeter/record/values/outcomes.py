"""What a logged value can turn out to be, other than a number."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tensormeter.ring.format import Drop

if TYPE_CHECKING:
    import torch

__all__ = ["Deferred", "DeviceValue", "Refused"]


class Refused(Exception):  # noqa: N818 - an outcome of `classify`, not an error that leaves this package
    """The value cannot be recorded; the message says why and what to do.

    Attributes:
        reason: What it counts as.
    """

    def __init__(self, message: str, reason: Drop = Drop.UNSUPPORTED_VALUE) -> None:
        super().__init__(message)
        self.reason = reason


class DeviceValue:
    """A one-element tensor whose value is still being computed by its device."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: "torch.Tensor") -> None:
        self.tensor = tensor


class Deferred:
    """A value that somebody will know later.

    Attributes:
        poll: Returns the value, or None as long as it is not there. Never blocks. Raises if it will never be there.
    """

    __slots__ = ("poll",)

    def __init__(self, poll: Callable[[], float | None]) -> None:
        self.poll = poll
