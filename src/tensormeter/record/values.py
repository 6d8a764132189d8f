"""What may be logged, and what each kind of value becomes.

Nothing here ever synchronizes with a device: a tensor's type and place are looked at before its value.
"""

import numbers
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

__all__ = ["EXACT_INT", "DeviceValue", "Refused", "classify", "kind_of", "scalar"]

EXACT_INT: Final = 1 << 53
"""Integers up to this magnitude are exact as float64."""

_INT64: Final = 1 << 63


class Refused(Exception):  # noqa: N818 - an outcome of `classify`, not an error that leaves this package
    """The value cannot be recorded; the message says why and what to do."""


class DeviceValue:
    """A one-element tensor whose value is still being computed by its device."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: "torch.Tensor") -> None:
        self.tensor = tensor


def classify(value: Any) -> float | int | DeviceValue:
    """Turn a logged value into a float, an int of 64 bits, or a device value. Never blocks.

    Integers whose magnitude exceeds 2**63 become the nearest float64. Booleans become 0.0 or 1.0.

    Raises:
        Refused: Anything else.
    """
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return float(value)
    if isinstance(value, int):
        return _integer(int(value))
    torch = sys.modules.get("torch")
    tensor_type = getattr(torch, "Tensor", None)
    if tensor_type is not None and isinstance(value, tensor_type):
        return _tensor(value)
    numpy = sys.modules.get("numpy")
    array_type = getattr(numpy, "ndarray", None)
    if array_type is not None and isinstance(value, (array_type, numpy.generic)):  # type: ignore[union-attr]
        return _array(value)
    if isinstance(value, (numbers.Real, Decimal)):  # float subclasses, Fraction, ...
        return _real(value)
    raise Refused(f"cannot record a {_name(value)}; log a number or a tensor with one element")


def _integer(value: int) -> float | int:
    if -_INT64 <= value < _INT64:
        return value
    try:
        return float(value)
    except OverflowError:
        raise Refused("the integer is too large for a float64; scale it before logging") from None


def _real(value: Any) -> float | int:
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError) as error:
        raise Refused(f"a {_name(value)} that does not convert to a float ({error})") from None


def _array(value: Any) -> float | int:
    """NumPy scalars, and arrays with one element."""
    if value.size != 1:
        raise Refused(f"an array of shape {value.shape}; log one element, or its mean")
    if value.dtype.kind not in "fiub":
        raise Refused(f"an array of dtype {value.dtype}; log a real number")
    if getattr(value, "mask", None) is not None and value.mask.any():
        raise Refused("a masked value; log it where it is valid")
    item = value.item()
    return _integer(item) if type(item) is int else _real(item)


def _tensor(value: "torch.Tensor") -> float | int | DeviceValue:
    """Tensors by value if they are on the CPU, else to be copied in stream order."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise Refused(f"a tensor of type {_name(value)}; log a plain tensor, such as its local part")
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise Refused("a tensor inside a function transform (vmap, grad, ...); log outside of it")
    if value.layout is not torch.strided or value.is_meta:
        raise Refused("a sparse or meta tensor has no single value; log a dense one")
    if value.numel() != 1:
        raise Refused(f"a tensor of shape {tuple(value.shape)}; log one element, or its mean")
    if value.is_complex():
        raise Refused("a complex tensor; log its .real, .imag or .abs()")
    if value.device.type != "cpu":
        return DeviceValue(value)
    item = value.item()
    return _integer(item) if type(item) is int else float(item)


def scalar(tensor: "torch.Tensor") -> "torch.Tensor":
    """A one-element tensor as one of shape () that foreach kernels can read, without its autograd history."""
    flat = tensor.detach().reshape(())
    # There is no foreach kernel that reads 8-bit floats.
    return flat.float() if flat.dtype.itemsize == 1 and flat.dtype.is_floating_point else flat


def kind_of(value: float) -> str:
    """The writer's kind of a classified host value: see `Lane.make_writer`."""
    if type(value) is float:
        return "d"
    return "i" if -EXACT_INT <= value <= EXACT_INT else "q"


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
