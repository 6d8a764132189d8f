"""Modules that are hidden from others while these are imported."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hidden"]


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """In the block, importing a module that has not been imported before raises ImportError."""
    is_new = name not in sys.modules
    if is_new:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if is_new:
            del sys.modules[name]
