"""Gathering one-element tensors of a device into consecutive words, in as few launches as stock kernels allow.

`torch._foreach_copy_` is one kernel, converting as it copies, where all sources have one dtype and all tensors are dense, of
equal shape and on one device; otherwise it quietly makes a copy for each tensor. So sources come here in runs of one dtype,
and as tensors of shape (). The addresses travel in the kernel's arguments, 64 pairs in a launch. Launches for n values of
one dtype, hence:

- float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, bool: ceil(n / 64);
- other real dtypes, such as 8-bit floats and uint16, which not every version has kernels for: their bits are gathered as
  integers of their size, in ceil(n / 64) launches, and then converted together, in one more.
"""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["accumulator_dtype", "dtype_order", "gather", "scalar"]


def scalar(tensor: "torch.Tensor") -> "torch.Tensor":
    """A one-element tensor as one of shape (), without its autograd history."""
    detached = tensor.detach()
    return detached if detached.dim() == 0 else detached.reshape(())


def dtype_order(tensor: "torch.Tensor") -> str:
    """The key by which tensors are sorted for `gather`."""
    return str(tensor.dtype)


def accumulator_dtype(device: "torch.device") -> "torch.dtype":
    """What numbers are kept in on a device: float64, but on Apple's GPUs, which have none."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def gather(sources: Sequence["torch.Tensor"], words: "torch.Tensor") -> None:
    """Copy values into words of the same device, on its current stream. Never waits.

    Call it with grad mode off.

    Args:
        sources: One-element tensors; equal dtypes are neighbours: see `dtype_order`.
        words: Floats, of shape (len(sources),), contiguous.
    """
    import torch

    start = 0
    for dtype, group in groupby(sources, key=lambda source: source.dtype):
        scalars = [scalar(source) for source in group]
        into = words.narrow(0, start, len(scalars))
        start += len(scalars)
        if dtype in _with_kernels():
            torch._foreach_copy_(list(into.unbind()), scalars)
        else:
            bits = _bits(dtype.itemsize)
            packed = torch.empty(len(scalars), dtype=bits, device=into.device)
            torch._foreach_copy_(list(packed.unbind()), [source.view(bits) for source in scalars])
            into.copy_(packed.view(dtype))


@cache
def _with_kernels() -> "frozenset[torch.dtype]":
    """Dtypes that every version's foreach kernels read."""
    import torch

    return frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                      torch.int8, torch.uint8, torch.bool))  # fmt: skip


def _bits(size: int) -> "torch.dtype":
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
