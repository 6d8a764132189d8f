"""Coroutines in tests that are not asynchronous."""

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio

__all__ = ["run_coroutine"]

_T = TypeVar("_T")


def run_coroutine(function: Callable[[], Awaitable[_T]]) -> _T:
    """Run a coroutine function in another thread, because the browser of other tests may have a loop in this one."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(anyio.run, function).result(300)
