"""Classification of JAX arrays.

JAX arrays are immutable, so a reference to an array is a snapshot of its value. JAX computes arrays asynchronously, so later
log calls poll them. This module need not import JAX, because a program that logs a JAX array has already imported it.
"""

from types import ModuleType
from typing import Any

from tensormeter.record.values.outcomes import Deferred, Refused

__all__ = ["classify_jax"]


def classify_jax(value: Any, jax: ModuleType) -> float | int | Deferred:
    """Convert a `jax.Array` to a deferred value. Never blocks, because later log calls poll the array until it is available.

    Args:
        value: One-element array.
        jax: The `jax` module.

    Raises:
        Refused: The array is a tracer, has been donated, is partly on other hosts, or does not contain exactly one real number.
    """
    if isinstance(value, jax.core.Tracer):
        raise Refused("a JAX tracer has no value yet; inside jit, log through jax.debug.callback")
    if value.size != 1:
        raise Refused(
            f"a JAX array of shape {tuple(value.shape)} is not a single value; log one element, its mean, or "
            "tensormeter.Histogram(numpy.asarray(array))"
        )
    if str(value.dtype).startswith("complex") or str(value.dtype).startswith("key"):
        raise Refused(f"cannot record a JAX array of dtype {value.dtype}; log a real number")
    if value.is_deleted():
        raise Refused("the JAX array was donated to a computation; log it before it is donated")
    if not value.is_fully_addressable:
        raise Refused("the JAX array is partly on other hosts; log a replicated or local array")
    value.copy_to_host_async()
    # When an array becomes ready, the host copy that was started above still takes a few more microseconds.
    # One poll therefore detects that the array is ready, and the next poll reads the value.
    was_ready = False

    def poll() -> float | None:
        nonlocal was_ready
        if not was_ready:
            was_ready = value.is_ready()
            return None
        number = value.item()
        return float(number)

    return Deferred(poll)
