"""Number types that NumPy's own operations do not support."""

from typing import Any

__all__ = ["is_extension_number", "with_native_numbers"]


def is_extension_number(dtype: Any) -> bool:
    """Return whether a NumPy dtype is one of the number types of `ml_dtypes`, such as bfloat16, which JAX uses."""
    return dtype.type.__module__.partition(".")[0] == "ml_dtypes"  # type: ignore[no-any-return]


def with_native_numbers(array: Any) -> Any:
    """Return a NumPy array with numbers of at most 64 bits that NumPy supports. Other arrays are returned unchanged."""
    if is_extension_number(array.dtype):
        return array.astype("float32")
    return array.astype("float64") if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array
