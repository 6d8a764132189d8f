"""Work that may wait for a disk, with a deadline."""

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["within"]

_Result = TypeVar("_Result")


def within(seconds: float, work: Callable[[threading.Event], _Result], undo: Callable[[_Result], None]) -> _Result:
    """Do some work on a thread that lives only for that, and wait for it.

    Where no thread can be started, the work is done here, however long that takes.

    Args:
        seconds: How long to wait.
        work: The work. Its argument is set once nobody waits for it any more; then it should do nothing that others see.
        undo: Called with the result, on that thread, if it comes too late.

    Returns:
        What `work` returns.

    Raises:
        TimeoutError: It takes longer.
        BaseException: Whatever `work` raises, or a signal handler of this thread.
    """
    late = threading.Event()
    done = threading.Event()
    settled = threading.Lock()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result = work(late)
        except BaseException as error:  # it is raised where it is waited for
            errors.append(error)
            done.set()
            return
        with settled:
            if not late.is_set():
                results.append(result)
                done.set()
                return
        undo(result)

    try:
        threading.Thread(target=run, name="tensormeter-begin", daemon=True).start()
    except RuntimeError:
        return work(late)
    try:
        done.wait(seconds)
    finally:
        with settled:
            if not done.is_set():
                late.set()
    if late.is_set():
        raise TimeoutError(f"it does not answer within {seconds:.0f} s")
    if errors:
        raise errors[0]
    return results[0]
