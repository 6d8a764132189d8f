"""JAX arrays: immutable, so a reference is a snapshot; ready later, so they are looked at later.

JAX itself is never imported: whoever logs one of its arrays has done so.
"""

from types import ModuleType
from typing import Any

from tensormeter.record.values.outcomes import Deferred, Refused

__all__ = ["classify_jax"]


def classify_jax(value: Any, jax: ModuleType) -> float | int | Deferred:
    """What becomes of a `jax.Array`. Never blocks: an array that is not computed yet is polled by later log calls.

    Args:
        value: The array.
        jax: The module.

    Raises:
        Refused: A tracer; more than one element, or elements on other hosts; no real number; a donated array.
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
    # Ready says that it has been computed; the copy to the host that was begun above is a few microseconds behind.
    # So a value is taken when it was ready at the poll before.
    was_ready = False

    def poll() -> float | None:
        nonlocal was_ready
        if not was_ready:
            was_ready = value.is_ready()
            return None
        number = value.item()
        return float(number)

    return Deferred(poll)
