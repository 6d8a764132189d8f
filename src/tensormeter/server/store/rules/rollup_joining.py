"""Joining of stored rollups and the points around them into the blocks of one series."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.point_range import PointRange, Track
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, FIRST, LAST, Blocks

__all__ = ["UnorderedError", "join_rollups", "select_rollups", "separate_rollups"]


class UnorderedError(Exception):
    """Blocks cannot be used, because steps are missing, are not integers, are in several series or not in time order."""


class _Rollup(Protocol):
    """A rollup of some points of a series."""

    @property
    def times(self) -> tuple[int, int]:
        """Earliest and latest time."""

    @property
    def steps(self) -> tuple[int, int] | None:
        """Lowest and highest step; None unless every point has a step."""


_R = TypeVar("_R", bound=_Rollup)


def select_rollups(rollups: Iterable[_R], track: Track, window: PointRange) -> tuple[list[_R], list[_R]]:
    """Select the rollups of a series that represent points of a window.

    Args:
        rollups: Rollups in order of their earliest time.
        track: Process and metric of the series.
        window: Range of points to read.

    Returns:
        Rollups that can be used as a whole and do not overlap, and rollups whose points must be read.
    """
    full: list[_R] = []
    partial: list[_R] = []
    for rollup in rollups:
        is_selected = window.takes(track, rollup.times, rollup.steps)
        if is_selected is None:
            partial.append(rollup)
        if not is_selected:
            continue
        while full and full[-1].times[1] >= rollup.times[0]:
            # If two overlap, read the points of the longer one, because usually only a few outlying times make it long.
            longer = max(full[-1], rollup, key=lambda each: each.times[1] - each.times[0])
            partial.append(longer)
            if longer is rollup:
                break
            full.pop()
        else:
            full.append(rollup)
    return full, partial


def separate_rollups(rollups: Sequence[_R], times: NDArray[np.int64]) -> tuple[list[_R], list[_R]]:
    """Divide rollups into those that do not contain any of the given ascending times, and those that do."""
    bounds = np.array([rollup.times for rollup in rollups], np.int64).reshape(-1, 2)
    is_mixed = np.searchsorted(times, bounds[:, 1], "right") > np.searchsorted(times, bounds[:, 0])
    separate = [rollup for rollup, mixed in zip(rollups, is_mixed.tolist(), strict=True) if not mixed]
    return separate, [rollup for rollup, mixed in zip(rollups, is_mixed.tolist(), strict=True) if mixed]


def join_rollups(
    rollups: Sequence[_Rollup],
    stored: Sequence[Blocks],
    points: Points,
    steps: NDArray[np.int64] | None,
    *,
    by_step: bool,
    size: int = BLOCK_POINTS,
) -> Blocks:
    """Join the blocks of rollups and the points between them.

    Args:
        rollups: Rollups in order of time, at least one. They do not overlap, and contain none of the points' times.
        stored: Blocks of the rollups, in any order.
        points: Points, with distinct and ascending times.
        steps: Steps of the points; None if they are not needed.
        by_step: Whether steps must be in order of time.
        size: Maximum number of points in a block of points.

    Raises:
        UnorderedError: Steps are not in order of time.
    """
    parts = list(stored)
    edges = np.searchsorted(points.times, [rollup.times[0] for rollup in rollups])
    for index in np.split(np.arange(len(points)), edges):
        if len(index):
            part, logged = points[index], None if steps is None else steps[index]
            if by_step and logged is not None and np.any(logged[1:] < logged[:-1]):
                raise UnorderedError
            parts.append(Blocks.of(part.times, part.floats(), logged, size))
    joined = Blocks.concat(parts)
    joined = joined[np.argsort(joined.times[:, FIRST], kind="stable")]
    if by_step and np.any(joined.steps[1:, FIRST] < joined.steps[:-1, LAST]):
        raise UnorderedError
    return joined
