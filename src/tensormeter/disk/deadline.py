"""Deadlines for work that may block on a disk."""

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["within"]

_Result = TypeVar("_Result")


def within(seconds: float, work: Callable[[threading.Event], _Result], undo: Callable[[_Result], None]) -> _Result:
    """Run a function on a temporary thread, and wait for its result.

    If no thread can be started, the function runs on the calling thread, without a deadline.

    Args:
        seconds: Maximum seconds to wait.
        work: Function to run. Its argument is an event that is set when the deadline passes. After that, the function
            should have no visible effect.
        undo: Function that is called with a late result, on the temporary thread.

    Returns:
        Result of `work`.

    Raises:
        TimeoutError: The deadline has passed.
        BaseException: An exception from `work` or from a signal handler on this thread.
    """
    late = threading.Event()
    settled = threading.Lock()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result = work(late)
        except BaseException as error:  # it is raised on the waiting thread
            errors.append(error)
            return
        with settled:
            if not late.is_set():
                results.append(result)
                return
        undo(result)

    thread = threading.Thread(target=run, name="tensormeter-begin", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return work(late)
    try:
        thread.join(seconds)  # once it has ended, from Python 3.12 on, a fork does not warn of it
    finally:
        with settled:
            if not results and not errors:
                late.set()
    if late.is_set():
        raise TimeoutError(f"it did not respond within {seconds:.0f} s")
    if errors:
        raise errors[0]
    return results[0]
