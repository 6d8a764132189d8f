"""Classification of JAX arrays.

JAX arrays are immutable, so a reference to one is a snapshot. JAX computes them asynchronously, so later log calls poll them.
This module never imports JAX, because a program that logs a JAX array has already imported it.
"""

from types import ModuleType
from typing import Any

from tensormeter.record.values.outcomes import Deferred, Refused

__all__ = ["classify_jax"]


def classify_jax(value: Any, jax: ModuleType) -> float | int | Deferred:
    """Convert a `jax.Array` to a deferred value. Never blocks: later log calls poll the array until it has been computed.

    Args:
        value: Array with one element.
        jax: The `jax` module.

    Raises:
        Refused: The array is a tracer, has been donated, has more than one element, is partly on other hosts, or is not real.
    """
    if isinstance(value, jax.core.Tracer):
        raise Refused("a JAX tracer has no value yet; inside jit, log through jax.debug.callback")
    if value.size != 1:
        raise Refused(f"a JAX array of shape {tuple(value.shape)}; log one element, or its mean")
    if str(value.dtype).startswith("complex") or str(value.dtype).startswith("key"):
        raise Refused(f"a JAX array of dtype {value.dtype}; log a real number")
    if value.is_deleted():
        raise Refused("a JAX array that was donated to a computation; log it before it is donated")
    if not value.is_fully_addressable:
        raise Refused("a JAX array that is partly on other hosts; log one that is replicated or local")
    value.copy_to_host_async()
    # When an array becomes ready, the copy to the host that was started above still takes a few microseconds.
    # So the value is read by the next poll after the one that finds the array ready.
    was_ready = False

    def poll() -> float | None:
        nonlocal was_ready
        if not was_ready:
            was_ready = value.is_ready()
            return None
        number = value.item()
        return float(number)

    return Deferred(poll)
