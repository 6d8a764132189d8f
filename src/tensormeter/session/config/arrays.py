"""Conversion of arrays, tensors, their scalars and data frames to JSON values. Never waits for a device."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["is_array", "summarize_array", "summarize_frame"]

_MOST_LISTED: Final = 100
"""Maximum number of elements of an array that is stored as a list. A larger array is stored as a summary."""

_FIRST: Final = 8
"""Number of elements that a summary lists."""

_MOST_DIGITS: Final = 17
"""Number of significant digits from which a float64 is stored as it is."""

_MOST_SCANNED: Final = 1 << 22
"""Maximum number of elements to search for the minimum and the maximum."""


def is_array(value: Any) -> bool:
    """Return whether a value is an array, a tensor or a scalar of an array library. Its dtype may be of any kind."""
    kind = type(value)
    return hasattr(kind, "shape") and hasattr(kind, "dtype")


def summarize_array(value: Any) -> Any:
    """Convert an array to a number, a nested list or, if it is large, a summary.

    The summary is an object with `dtype`, `shape` and, if the values can be read without waiting for a device, `min`,
    `max` and `first`, a list of the first elements. The elements may be objects that need further conversion.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _summarize_tensor(value, torch)
    if _is_on_device(value):
        return _shape_of(value)
    import numpy as np

    with np.errstate(all="ignore"):  # rounding may overflow, and a warning may be an error in the caller's program
        return _summarize_numpy(value if isinstance(value, np.ndarray) else np.asarray(value))


def _summarize_numpy(array: "NDArray[Any]") -> Any:
    if array.dtype.kind in "mM":
        array = array.astype(str)
    as_number = _number_converter(lambda number: float(array.dtype.type(number)))
    if array.size <= _MOST_LISTED:
        return _nested(array.tolist(), as_number)
    summary = _shape_of(array)
    if array.dtype.kind in "fiub" and array.size <= _MOST_SCANNED:
        summary |= {"min": as_number(array.min().item()), "max": as_number(array.max().item())}
    return summary | {"first": [as_number(item) for item in array.flat[:_FIRST].tolist()]}


def summarize_frame(value: Any) -> dict[str, Any]:
    """Describe a data frame by its type, shape and columns."""
    kind = type(value)
    names = value.schema.names if hasattr(kind, "to_pylist") else value.columns  # Arrow's `columns` are the data
    return {"type": kind.__name__, "shape": [value.shape[0], len(names)], "columns": [str(name) for name in names]}


def _nested(items: Any, as_number: Callable[[Any], Any]) -> Any:
    """Convert the elements of a nested list, as returned by `tolist`; a scalar is returned as a number."""
    return [_nested(item, as_number) for item in items] if isinstance(items, list) else as_number(items)


def _number_converter(rounded: Callable[[float], float]) -> Callable[[Any], Any]:
    """Return a function that converts an element to a Python value.

    A float becomes the shortest decimal number that has the same value in the array's own precision. `numpy.float32(0.1)` is
    therefore 0.1, not 0.10000000149011612.

    Args:
        rounded: Function that rounds a number to the array's precision.
    """

    def shortest(element: Any) -> Any:
        if isinstance(element, int) or not hasattr(element, "as_integer_ratio"):  # not a float of any library
            return element
        number = float(element)  # `tolist` returns types such as `numpy.longdouble` unchanged
        candidates = (float(f"{number:.{digits}g}") for digits in range(1, _MOST_DIGITS))
        return next((candidate for candidate in candidates if rounded(candidate) == number), number)

    return shortest


def _shape_of(value: Any) -> dict[str, Any]:
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": [int(size) for size in value.shape]}


def _is_on_device(value: Any) -> bool:
    """Return whether reading an array of another library may wait for a device."""
    try:
        devices = value.devices() if callable(getattr(value, "devices", None)) else [getattr(value, "device", "cpu")]
        return not all("cpu" in str(device).lower() for device in devices)
    except Exception:  # the array's own code may raise anything
        return True


def _summarize_tensor(value: Any, torch: Any) -> Any:
    if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized:
        return _shape_of(value)
    tensor = value.detach()
    as_number = _number_converter(lambda number: torch.tensor(number, dtype=tensor.dtype).item())
    if tensor.numel() <= _MOST_LISTED:
        return _nested(tensor.tolist(), as_number)
    summary = _shape_of(tensor)
    if not tensor.is_complex() and tensor.numel() <= _MOST_SCANNED:
        numbers = tensor.float() if tensor.is_floating_point() else tensor
        summary |= {"min": as_number(numbers.min().item()), "max": as_number(numbers.max().item())}
    return summary | {"first": [as_number(item) for item in tensor.flatten()[:_FIRST].tolist()]}
