"""Copies of arrays and tensors in host memory."""

import sys
from typing import TYPE_CHECKING, Any

from tensormeter.conventions.limits import PIXEL_BYTES, too_large
from tensormeter.record.values.number_types import with_native_numbers
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["copy_array", "is_array", "is_tensor"]


def is_tensor(value: object) -> bool:
    """Return whether a value is a torch tensor. Does not import torch."""
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor_type is not None and issubclass(type(value), tensor_type)


def is_array(value: object) -> bool:
    """Return whether a value is a NumPy array, a torch tensor, or another object with NumPy's array protocols."""
    if is_tensor(value):
        return True
    kind = type(value)
    generic = getattr(sys.modules.get("numpy"), "generic", None)
    if generic is not None and issubclass(kind, generic):
        return False
    return hasattr(kind, "__array__") or hasattr(kind, "__array_interface__")


def copy_array(value: Any, what: str, reason: Drop) -> "NDArray[Any]":
    """Copy an array or a tensor to a new NumPy array of real numbers. Masked elements become NaN.

    Args:
        value: Array, tensor on the CPU, or nested sequence of numbers.
        what: Noun for the item, such as "image".
        reason: Reason under which an array that is too large is counted.

    Raises:
        Refused: The value is on a device, is larger than `PIXEL_BYTES`, or does not contain real numbers.
    """
    import numpy as np

    if is_tensor(value):
        value = _of_tensor(value, what)
    _wait_for_nothing(value, what)
    size = getattr(value, "nbytes", 0)
    if isinstance(size, int) and size > PIXEL_BYTES:
        advice = "log a smaller one, or pass uint8 values or an encoded file"
        raise Refused(too_large(size, PIXEL_BYTES, f"the uncompressed {what}", advice), reason)
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    array: NDArray[Any] = with_native_numbers(np.array(value, order="C"))
    if array.dtype.kind not in "biuf":
        dtype = str(array.dtype)
        advice = "log its .real, .imag or its absolute value" if array.dtype.kind == "c" else "pass an array of numbers"
        raise Refused(f"cannot record elements of dtype {dtype}; {advice}")
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def _of_tensor(tensor: Any, what: str) -> Any:
    import torch

    if tensor.is_meta or tensor.layout is not torch.strided:
        raise Refused("cannot record a sparse or meta tensor; log a dense one")
    if tensor.device.type != "cpu":
        raise Refused(
            f"the tensor is on {tensor.device}, and reading it would block until the device is done; log "
            f"{what.capitalize()}(tensor.cpu())"
        )
    tensor = tensor.detach()
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.resolve_conj().resolve_neg().numpy()


def _wait_for_nothing(value: Any, what: str) -> None:
    """Refuse a JAX array that is still being computed on a device, or that this process does not have."""
    jax = sys.modules.get("jax")
    array_type = getattr(jax, "Array", None)
    if array_type is None or not isinstance(value, array_type):
        return
    on_host = all(device.platform == "cpu" for device in value.devices())
    if not value.is_fully_addressable or not (on_host or value.is_ready()):
        raise Refused(
            f"the JAX array is on a device, and reading it would block; log {what.capitalize()}(numpy.asarray(array))"
        )
