"""Forks this process."""

import os
from collections.abc import Callable

__all__ = ["call_in_child", "fork"]


def fork(work: Callable[[], object]) -> int:
    """Call `work` in a forked child. Returns the child's pid. Its exit status is 0, or 1 if `work` raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def call_in_child(work: Callable[[], object]) -> str:
    """Call `work` in a forked child, and wait for its end. Returns the `repr` of the result. Fails if `work` raises."""
    reading, writing = os.pipe()
    child = fork(lambda: os.write(writing, repr(work()).encode()))
    os.close(writing)
    with os.fdopen(reading) as answer:
        result = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return result
