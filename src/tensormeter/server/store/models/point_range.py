"""The range of points to read, which excludes points that a later attempt shadows.

A later attempt repeats steps that an earlier attempt has logged. It shadows the earlier attempt's points of a metric at and
after its own first step of that metric.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["PointRange", "Track", "kept"]

Track = tuple[str, str]
"""Process and metric of a series."""


@dataclass(frozen=True)
class PointRange:
    """Ranges of time and steps, and the starts of later attempts.

    Attributes:
        start: Start of the time range, inclusive, in nanoseconds since the Unix epoch; None for no bound.
        stop: End of the time range, exclusive, in nanoseconds since the Unix epoch; None for no bound.
        by_step: Whether to select only points with a step.
        first_step: Start of the step range, inclusive; None for no bound. Requires `by_step`.
        last_step: End of the step range, exclusive; None for no bound. Requires `by_step`.
        begins: Starts of later attempts as pairs (step, time), by the process and metric whose points they shadow.
    """

    start: int | None = None
    stop: int | None = None
    by_step: bool = False
    first_step: float | None = None
    last_step: float | None = None
    begins: Mapping[Track, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def needs_steps(self, track: Track) -> bool:
        """Return whether the selection of a series' points depends on their steps."""
        return self.by_step or track in self.begins

    def takes(self, track: Track, times: tuple[int, int], steps: tuple[int, int] | None) -> bool | None:
        """Return whether all (True), none (False) or possibly some (None) points between two times are selected.

        Args:
            track: Process and metric of the points.
            times: Earliest and latest time.
            steps: Lowest and highest step; None if they are unknown or a point has no step.
        """
        (first, last), is_inside = times, True
        if (self.start is not None and last < self.start) or (self.stop is not None and first >= self.stop):
            return False
        if (self.start is not None and first < self.start) or (self.stop is not None and last >= self.stop):
            is_inside = False
        if self.by_step:
            if steps is None:
                return None
            low, high = steps
            start, stop = self.first_step, self.last_step
            if (start is not None and high < start) or (stop is not None and low >= stop):
                return False
            if (start is not None and low < start) or (stop is not None and high >= stop):
                is_inside = False
        for step, began in self.begins.get(track, ()):
            if first >= began or (steps is not None and steps[1] < step):
                continue
            if steps is not None and steps[0] >= step and last < began:
                return False
            is_inside = False
        return is_inside or None

    def mask(
        self, track: Track, times: NDArray[np.int64], steps: NDArray[np.int64], stepped: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return a mask of the selected points of series with one process and metric.

        Args:
            track: Process and metric of the points.
            times: Times of the points, shape (n,).
            steps: Steps logged at these times, shape (n,), valid where `stepped` is True.
            stepped: Whether a step was logged at each time, shape (n,).
        """
        begins = self.begins.get(track, ())
        if (
            not begins
            and self.start is None
            and self.stop is None
            and self.first_step is None
            and self.last_step is None
        ):
            return stepped if self.by_step else np.ones(len(times), np.bool_)
        mask = kept(times, steps, stepped, begins)
        if self.start is not None:
            mask &= times >= self.start
        if self.stop is not None:
            mask &= times < self.stop
        if self.by_step:
            mask &= stepped
            if self.first_step is not None:
                mask &= steps >= self.first_step
            if self.last_step is not None:
                mask &= steps < self.last_step
        return mask


def kept(
    times: NDArray[np.int64],
    steps: NDArray[np.int64],
    stepped: NDArray[np.bool_],
    begins: Iterable[tuple[int, int]],
) -> NDArray[np.bool_]:
    """Return a mask of the points of series with one process and metric that no later attempt shadows.

    Args:
        times, steps, stepped: Same as for `PointRange.mask`.
        begins: Starts of later attempts, as pairs (step, time).
    """
    mask = np.ones(len(times), np.bool_)
    for step, began in begins:
        mask &= ~(stepped & (steps >= step) & (times < began))
    return mask
