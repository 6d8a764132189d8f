"""Metrics of torch's memory allocator. Only the training process can read the allocator's statistics."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tensormeter.ring.layout import Stream

__all__ = ["TORCH_MEMORY", "torch_memory"]

TORCH_MEMORY: Final[Mapping[str, tuple[tuple[str, ...], str, str, str]]] = {
    "tensormeter.torch.memory.allocated": (
        ("allocated_bytes", "all", "current"),
        "gauge",
        "By",
        "Memory allocated to tensors.",
    ),
    "tensormeter.torch.memory.allocated.peak": (
        ("allocated_bytes", "all", "peak"),
        "gauge",
        "By",
        "Peak memory allocated to tensors.",
    ),
    "tensormeter.torch.memory.reserved": (
        ("reserved_bytes", "all", "current"),
        "gauge",
        "By",
        "Memory reserved by the allocator.",
    ),
    "tensormeter.torch.memory.reserved.peak": (
        ("reserved_bytes", "all", "peak"),
        "gauge",
        "By",
        "Peak memory reserved by the allocator.",
    ),
    "tensormeter.torch.memory.inactive_split": (
        ("inactive_split_bytes", "all", "current"),
        "gauge",
        "By",
        "Free memory in split blocks that cannot be released (fragmentation).",
    ),
    "tensormeter.torch.memory.allocation_retries": (
        ("num_alloc_retries",),
        "observable_counter",
        "{retry}",
        "Number of allocations retried after emptying the cache. Each retry waits for the GPU.",
    ),
    "tensormeter.torch.memory.out_of_memory_errors": (
        ("num_ooms",),
        "observable_counter",
        "{error}",
        "Number of allocations that failed because memory ran out.",
    ),
}
"""Metrics by name. Each has a path in torch's statistics, a kind, a unit and a description."""


def torch_memory() -> Iterator[tuple[Stream, int]]:
    """Yield the allocator's statistics for each GPU that this process uses.

    The allocator keeps the statistics in host memory. Reading them does not wait for the GPU, launch kernels, import torch or
    initialize CUDA. Reading takes about 30 microseconds per GPU, so call this function every few seconds, not in every log
    call. Thread-safe.
    """
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # None while torch is still being imported
    if cuda is None or not cuda.is_initialized():
        return
    for device in range(cuda.device_count()):
        statistics = cuda.memory_stats_as_nested_dict(device)
        if not _value(statistics, ("reserved_bytes", "all", "peak")):
            continue  # this process does not use the GPU
        attributes = (("tensormeter.torch.device", f"cuda:{device}"),)
        for name, (path, kind, unit, description) in TORCH_MEMORY.items():
            value = _value(statistics, path)
            if value is not None:
                yield Stream(name, kind, unit, description, attributes), value


def _value(statistics: Any, path: tuple[str, ...]) -> int | None:
    """Look up a value. Return None if this version of torch or this allocator does not provide the value."""
    for key in path:
        statistics = statistics.get(key) if isinstance(statistics, Mapping) else None
    return statistics if isinstance(statistics, int) else None
