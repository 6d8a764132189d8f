"""Which points of a run a reader wants: within ranges, and not shadowed by a later attempt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["PointRange", "kept"]


@dataclass(frozen=True)
class PointRange:
    """Ranges of time and of steps, and where later attempts begin.

    Attributes:
        start: Only points with time >= start, in nanoseconds since the Unix epoch.
        stop: Only points with time < stop.
        by_step: Only points with a step.
        first_step: Only points with step >= first_step; only if `by_step`.
        last_step: Only points with step < last_step; only if `by_step`.
        begins: For processes that are shadowed: (step, time) where each later attempt begins.
    """

    start: int | None = None
    stop: int | None = None
    by_step: bool = False
    first_step: float | None = None
    last_step: float | None = None
    begins: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def needs_steps(self, process: str) -> bool:
        """Whether it depends on steps which points of a process are wanted."""
        return self.by_step or process in self.begins

    def takes(self, process: str, times: tuple[int, int], steps: tuple[int, int] | None) -> bool | None:
        """Whether points between two times are wanted: all, none, or, as None, one has to look at each.

        Args:
            process: Whose points.
            times: The earliest and the latest.
            steps: The lowest and the highest step, if each of them has one; None: it is not known.
        """
        (first, last), found = times, True
        if (self.start is not None and last < self.start) or (self.stop is not None and first >= self.stop):
            return False
        if (self.start is not None and first < self.start) or (self.stop is not None and last >= self.stop):
            found = False
        if self.by_step:
            if steps is None:
                return None
            low, high = steps
            after, before = self.first_step, self.last_step
            if (after is not None and high < after) or (before is not None and low >= before):
                return False
            if (after is not None and low < after) or (before is not None and high >= before):
                found = False
        for step, began in self.begins.get(process, ()):
            if first >= began or (steps is not None and steps[1] < step):
                continue
            if steps is not None and steps[0] >= step and last < began:
                return False
            found = False
        return found or None

    def mask(
        self, process: str, times: NDArray[np.int64], steps: NDArray[np.int64], stepped: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which points of a process are wanted.

        Args:
            process: Whose points.
            times: All arrays are of shape (n,).
            steps: Logged at these times, where `stepped`.
            stepped: Whether there was one.
        """
        found = kept(times, steps, stepped, self.begins.get(process, ()))
        if self.start is not None:
            found &= times >= self.start
        if self.stop is not None:
            found &= times < self.stop
        if self.by_step:
            found &= stepped
            if self.first_step is not None:
                found &= steps >= self.first_step
            if self.last_step is not None:
                found &= steps < self.last_step
        return found


def kept(
    times: NDArray[np.int64],
    steps: NDArray[np.int64],
    stepped: NDArray[np.bool_],
    begins: Iterable[tuple[int, int]],
) -> NDArray[np.bool_]:
    """Which points of a process no later attempt shadows; arguments as for `PointRange.mask`.

    Args:
        begins: (step, time) where each later attempt begins.
    """
    found = np.ones(len(times), np.bool_)
    for step, began in begins:
        found &= ~(stepped & (steps >= step) & (times < began))
    return found
