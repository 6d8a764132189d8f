"""Gathering one-element tensors of a device into consecutive words, in as few launches as stock kernels allow.

`torch._foreach_copy_` is one kernel, converting as it copies, where all sources have one dtype and all tensors are dense, of
equal shape and on one device; otherwise it quietly makes a copy for each tensor. So sources come here in runs of one dtype,
and as tensors of shape (). The addresses travel in the kernel's arguments: 64 pairs in a launch, 448 where torch was built
with CUDA 13. Launches for n values of one dtype, hence:

- float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, bool: n / 64 (or 448), rounded up;
- other real dtypes, such as 8-bit floats and uint16, which not every version has kernels for: their bits are gathered as
  integers of their size, and then converted together, in one more launch.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["NoGradients", "accumulator_dtype", "dtype_order", "gather", "scalar"]


class NoGradients:
    """A context in which no operation becomes part of an autograd graph, or carries a forward-mode gradient along.

    A third of what torch's own context managers cost, which is 2 us each.
    """

    __slots__ = ("_backward", "_forward")

    def __enter__(self) -> None:
        import torch

        self._backward, self._forward = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        torch._C._set_grad_enabled(False)
        torch._C._set_fwd_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        import torch

        torch._C._set_grad_enabled(self._backward)
        torch._C._set_fwd_grad_enabled(self._forward)


def scalar(tensor: "torch.Tensor") -> "torch.Tensor":
    """A one-element tensor as one of shape ()."""
    return tensor if tensor.dim() == 0 else tensor.reshape(())


def dtype_order(tensor: "torch.Tensor") -> int:
    """The key by which tensors are sorted for `gather`."""
    return id(tensor.dtype)


def accumulator_dtype(device: "torch.device") -> "torch.dtype":
    """What numbers are kept in on a device: float64, but on Apple's GPUs, which have none."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def gather(sources: Sequence["torch.Tensor"], words: "torch.Tensor", start: int = 0) -> None:
    """Copy values into consecutive words of the same device, on its current stream. Never waits.

    Call it under `NoGradients`.

    Args:
        sources: One-element tensors; equal dtypes are neighbours: see `dtype_order`.
        words: Floats, of shape (n,), contiguous.
        start: Index of the first word to write.
    """
    import torch

    for begin, end, bits in _runs(tuple([source.dtype for source in sources])):
        scalars = [source if source.dim() == 0 else source.reshape(()) for source in sources[begin:end]]
        first, last = start + begin, start + end
        if bits is None:
            into = (words.select(0, first),) if len(scalars) == 1 else words[first:last].unbind()
            torch._foreach_copy_(into, scalars)
        else:
            packed = torch.empty(len(scalars), dtype=bits, device=words.device)
            torch._foreach_copy_(packed.unbind(), [source.view(bits) for source in scalars])
            words[first:last].copy_(packed.view(scalars[0].dtype))


@lru_cache(maxsize=1024)
def _runs(dtypes: "tuple[torch.dtype, ...]") -> "tuple[tuple[int, int, torch.dtype | None], ...]":
    """Where neighbours of one dtype begin and end, and what their bits are gathered as, if not they themselves."""
    found, begin = [], 0
    for dtype, group in groupby(dtypes):
        end = begin + len(list(group))
        found.append((begin, end, None if dtype in _with_kernels() else _bits(dtype.itemsize)))
        begin = end
    return tuple(found)


@cache
def _with_kernels() -> "frozenset[torch.dtype]":
    """Dtypes that every version's foreach kernels read."""
    import torch

    return frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                      torch.int8, torch.uint8, torch.bool))  # fmt: skip


def _bits(size: int) -> "torch.dtype":
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
