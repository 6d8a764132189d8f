"""PyTorch, or what stands in for it where it is not installed: any use of that skips the test, or at import its module."""

from typing import Any, NoReturn

import pytest

__all__ = ["has_cuda", "needs_torch", "torch"]


class Missing:
    """A package that is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith(("__", "_pytest", "pytest")):  # pytest looks at everything that a module has
            raise AttributeError(attribute)
        pytest.skip(f"{self._name} is not installed", allow_module_level=True)


torch: Any
try:
    import torch
except ModuleNotFoundError:
    torch = Missing("torch")

needs_torch = pytest.mark.skipif(isinstance(torch, Missing), reason="torch is not installed")
"""For tests of scripts that import PyTorch in separate processes."""


def has_cuda() -> bool:
    """Whether there is a CUDA device that PyTorch can use."""
    return not isinstance(torch, Missing) and torch.cuda.is_available()
