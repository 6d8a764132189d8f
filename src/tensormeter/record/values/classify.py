"""Classification of logged values as host numbers, device values, deferred values or refused values.

Classification never synchronizes with a device, because it checks the type and device of a tensor before reading its value.
"""

import numbers
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tensormeter.conventions.semconv import STEP_METRIC
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.record.values.jax_arrays import classify_jax
from tensormeter.record.values.number_types import is_extension_number
from tensormeter.record.values.outcomes import Deferred, DeviceValue, Refused

if TYPE_CHECKING:
    import torch

__all__ = [
    "EXACT_INT",
    "LONGEST_NAME",
    "Deferred",
    "DeviceValue",
    "Refused",
    "as_plain_tensor",
    "check_name",
    "check_plain",
    "classify",
    "classify_step",
    "is_rounded",
    "kind_of",
    "type_name",
]

EXACT_INT: Final = 1 << 53
"""Magnitude up to which float64 represents every integer exactly."""

LONGEST_NAME: Final = 1024
"""Maximum length of a metric name in characters. The server rejects longer names."""

_INT64: Final = 1 << 63

_PROTOCOL: Final = "__tensormeter_snapshot__"


def check_name(key: object) -> None:
    """Check that a key is a valid metric name.

    Raises:
        Refused: The key is not a valid name.
    """
    if type(key) is not str:
        raise Refused(f"the key has the type {type(key).__name__}; use a str")
    if not key:
        raise Refused("the name is empty")
    if key == STEP_METRIC:
        raise Refused("the name is reserved for the row's step; use the argument `step`")
    if (length := len(key if key.isascii() else as_unicode(key))) > LONGEST_NAME:
        raise Refused(f"the name has {length} characters; use at most {LONGEST_NAME}")


def classify(value: Any) -> float | int | DeviceValue | Deferred:
    """Convert a logged value to a float, a 64-bit int, a device value or a deferred value. Never blocks.

    Integers that do not fit into 64 bits become the nearest float64. Booleans become 0.0 or 1.0.
    Objects of other types can be recorded if they have a method `__tensormeter_snapshot__` (see `_snapshot`).

    Raises:
        Refused: The value has an unsupported type, or is not a single real number.
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
    jax = sys.modules.get("jax")
    array_type = getattr(jax, "Array", None)
    if jax is not None and array_type is not None and isinstance(value, array_type):
        return classify_jax(value, jax)
    if hasattr(kind, _PROTOCOL):
        return _snapshot(value)
    if isinstance(value, (numbers.Real, Decimal)):  # float subclasses, Fraction, ...
        return _real(value)
    if isinstance(value, Mapping):
        raise Refused(f"cannot record a {type_name(value)}; log each of its values under a separate name")
    if hasattr(kind, "__float__"):  # reading it may wait for a device
        raise Refused(f"cannot record a {type_name(value)}; log float(value)")
    raise Refused(
        f"cannot record a {type_name(value)}; log a number, a text, an array, an image, a figure or a frame, or "
        "a tensormeter.Table or Text of it"
    )


def classify_step(step: Any) -> int:
    """Convert a step to a 64-bit int. Never blocks.

    Raises:
        Refused: The step is not a whole number, does not fit into 64 bits, or is a value that a device may still be computing.
    """
    if type(step) is not int:
        try:
            number = classify(step)
        except Refused:
            raise Refused(f"a {type_name(step)} is not a whole number; pass an int") from None
        if isinstance(number, (DeviceValue, Deferred)):
            raise Refused("a device is still computing the step; pass an int")
        if number != number // 1:
            raise Refused(f"{number!r} is not a whole number; pass an int")
        step = int(number)
    if not -_INT64 <= step < _INT64:
        raise Refused("the step does not fit into 64 bits; pass a smaller int")
    return int(step)


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
        raise Refused(f"cannot convert a {type_name(value)} to a float ({error})") from None


def _array(value: Any) -> float | int:
    """Convert a NumPy scalar or a one-element NumPy array to a float or an int."""
    if value.dtype.kind not in "fiub" and not is_extension_number(value.dtype):
        raise Refused(f"cannot record an array of dtype {value.dtype}; log real numbers")
    if value.size != 1:
        raise Refused(_not_single("an array", value))
    if getattr(value, "mask", None) is not None and value.mask.any():
        raise Refused("the value is masked; log only valid values")
    item = value.item()
    return _integer(item) if type(item) is int else _real(item)


def _not_single(noun: str, value: Any) -> str:
    shape = tuple(value.shape)
    if 0 in shape:
        return f"{noun} of shape {shape} is empty; leave the key out if there is nothing to log"
    return f"{noun} of shape {shape} is not a single value; log one element, its mean, or a tensormeter.Histogram"


def _snapshot(value: Any) -> float | int | DeviceValue | Deferred:
    """Take a snapshot of an object, and classify it.

    The object's method `__tensormeter_snapshot__()` takes no arguments. It must not wait, and must return one of these values:

    - A number, or a one-element array or tensor. It is recorded as if it had been logged itself.
    - A callable without arguments. Log calls and `finish` call it on their threads until it returns the number. It must return
      None while the number is not available, must never wait, and must raise an error if the number cannot become available.
    """
    snapshot = value.__tensormeter_snapshot__()
    if hasattr(type(snapshot), _PROTOCOL):
        raise Refused(f"the snapshot of a {type_name(value)} has the same type; return a number or a callable")
    if callable(snapshot) and not isinstance(snapshot, numbers.Number):
        poll: Callable[[], float | None] = snapshot
        return Deferred(poll)
    return classify(snapshot)


def _tensor(value: "torch.Tensor") -> float | int | DeviceValue | Deferred:
    """Convert a CPU tensor to a number, and a tensor on a device to a device value, which is copied in stream order."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return _tensor_of_other_type(value)
    check_plain(value)
    if value.numel() != 1:
        raise Refused(_not_single("a tensor", value))
    if value.device.type != "cpu":
        return DeviceValue(value)
    item = value.item()
    return _integer(item) if type(item) is int else float(item)


def check_plain(value: "torch.Tensor") -> None:
    """Check that a tensor is plain and dense, and that its elements are real numbers.

    Raises:
        Refused: The tensor is not plain or dense, or its elements are not real numbers.
    """
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise Refused(f"cannot record a tensor of type {type_name(value)}; log a plain tensor, such as its local part")
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise Refused("the tensor is inside a function transform (vmap, grad, ...); log it outside the transform")
    if value.layout is not torch.strided or value.is_meta:
        raise Refused("a sparse or meta tensor has no single value; log a dense one")
    if value.is_complex():
        raise Refused("cannot record a complex tensor; log its .real, .imag or .abs()")
    if value.dtype not in _numeric_dtypes():
        raise Refused(f"cannot record a tensor of dtype {value.dtype}; log a real number")


def _tensor_of_other_type(value: "torch.Tensor") -> float | int | DeviceValue | Deferred:
    """Convert an instance of a tensor subclass: a DTensor that is replicated on all ranks, or an object with a snapshot method."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(value, distributed.DTensor):
        import torch

        if all(placement.is_replicate() for placement in value.placements):
            with torch.no_grad():  # without gradients, to_local() only reads an attribute and does not communicate
                return classify(value.to_local())
        # full_tensor() is a collective, which would hang if only one rank logged. item() would return the local part as if it
        # were the whole value.
        raise Refused(
            f"the value of a DTensor with placements {tuple(value.placements)} is distributed over ranks; "
            "log .full_tensor() on every rank, or .to_local() for the local part"
        )
    if hasattr(type(value), _PROTOCOL):
        return _snapshot(value)
    if (plain := as_plain_tensor(value)) is not value:
        return classify(plain)
    raise Refused(f"cannot record a tensor of type {type_name(value)}; log a plain tensor, such as its local part")


def as_plain_tensor(value: "torch.Tensor") -> "torch.Tensor":
    """Return a tensor of a subclass that only adds methods, such as fastai's and torchvision's, as a plain tensor.

    Other tensors are returned unchanged. A subclass that replaces operations may hold its values elsewhere.
    """
    import torch

    kind = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter) or hasattr(kind, "materialize"):
        return value
    if kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.detach().as_subclass(torch.Tensor)


@cache
def _numeric_dtypes() -> "frozenset[torch.dtype]":
    """Return the dtypes whose elements are real numbers. Exclude quantized numbers, bits and packed pairs."""
    import torch

    names = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
             "float8_e5m2fnuz", "float8_e8m0fnu", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
             "bool")  # fmt: skip
    return frozenset(getattr(torch, name) for name in names if hasattr(torch, name))


def is_rounded(value: Any, number: object) -> bool:
    """Return whether a value is an integer beyond 64 bits, and `number` the nearest float that `classify` returned for it."""
    if type(number) is not float or -_INT64 < number < _INT64:
        return False
    if issubclass(type(value), int):
        return not -_INT64 <= value < _INT64
    return number > 0 and str(getattr(value, "dtype", "")).endswith("uint64")


def kind_of(value: float) -> str:
    """Return the kind of a classified host value, as used by `Lane.make_writer`."""
    if type(value) is float:
        return "d"
    return "i" if -EXACT_INT <= value <= EXACT_INT else "q"


def type_name(value: Any) -> str:
    """Return the qualified name of a value's type."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
