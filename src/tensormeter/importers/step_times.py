"""Assignment of a time to each step of a process, so that each time belongs to exactly one step.

A store finds the step of a point by the point's time. Other trackers store the step with each point, and several steps can
have the same time, for example if times have whole milliseconds. Such steps get the next free nanosecond.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["StepTimes"]

_MOST_OVERLAPPING: Final = 8
"""Number of blocks with overlapping times from which on blocks are merged."""

_SMALL: Final = 4096
"""Number of pairs up to which a block is extended, so that single points do not become blocks."""

_MOST_MOVED: Final = 1_000_000
"""Maximum number of moved pairs to remember. Later points of forgotten pairs get another nanosecond."""

_Int64 = NDArray[np.int64]


class _Block:
    """Pairs of a time and its step, in ascending order of time. Times are distinct."""

    __slots__ = ("first", "last", "steps", "times")

    def __init__(self, times: _Int64, steps: _Int64) -> None:
        self.times, self.steps = times, steps
        self.first, self.last = int(times[0]), int(times[-1])


class StepTimes:
    """The times of the steps of one process. Memory: 16 bytes for each distinct pair of a time and a step. Not thread-safe."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._last = -1
        self._moved: dict[tuple[int, int], int] = {}
        """Assigned times of pairs whose time belongs to another step, by time and step."""
        self._next: dict[int, int] = {}
        """Time to try next for further steps, by their time."""

    def assign(self, steps: _Int64, times: _Int64) -> tuple[_Int64, _Int64, _Int64]:
        """Assign a time to each point. Equal pairs of step and time get equal times, in this call and in later ones.

        Args:
            steps: Step of each point, shape (n,).
            times: Time of each point in nanoseconds since the Unix epoch, shape (n,).

        Returns:
            The assigned time of each point, shape (n,), and the times and steps of the pairs that this call has added.
        """
        if not len(times):
            return times, times, steps
        gaps = np.diff(times)
        if times[0] > self._last and (gaps > 0).all():
            self._add(times, steps)
            return times, times, steps
        if times[0] > self._last and (gaps >= 0).all() and (np.diff(steps)[gaps == 0] == 0).all():
            kept = np.concatenate(([True], gaps > 0))  # consecutive points of one step, such as the metrics of a row
            self._add(times[kept], steps[kept])
            return times, times[kept], steps[kept]
        order = np.lexsort((steps, times))
        sorted_times, sorted_steps = times[order], steps[order]
        first: NDArray[np.bool_] = np.ones(len(order), bool)
        first[1:] = (np.diff(sorted_times) != 0) | (np.diff(sorted_steps) != 0)
        assigned, new_times, new_steps = self._assign_pairs(sorted_times[first], sorted_steps[first])
        result = np.empty_like(times)
        result[order] = assigned[np.cumsum(first) - 1]
        return result, new_times, new_steps

    def _add(self, times: _Int64, steps: _Int64) -> None:
        if not len(times):
            return
        last = self._blocks[-1] if self._blocks else None
        if last is not None and len(last.times) < _SMALL and last.last < times[0]:
            self._blocks[-1] = _Block(np.concatenate((last.times, times)), np.concatenate((last.steps, steps)))
        else:
            self._blocks.append(_Block(times.copy(), steps.copy()))
        self._last = max(self._last, int(times[-1]))

    def _assign_pairs(self, times: _Int64, steps: _Int64) -> tuple[_Int64, _Int64, _Int64]:
        """Assign times to distinct pairs, which are sorted by time and step. Return also the times and steps of new pairs."""
        known_steps, known = self._look_up(times)
        free = ~known
        free[1:] &= np.diff(times) != 0
        others = np.flatnonzero(~free & ~(known & (known_steps == steps))).tolist()
        self._add(times[free], steps[free])
        if not others:
            return times, times[free], steps[free]
        assigned = times.copy()
        added: dict[int, int] = {}
        for index in others:
            time, step = int(times[index]), int(steps[index])
            moved = self._moved.get((time, step))
            if moved is None:
                moved = self._next.get(time, time + 1)
                while moved in added or self._is_known(moved):
                    moved += 1
                self._remember(time, step, moved)
                added[moved] = step
            assigned[index] = moved
        moved_times = np.array(sorted(added), np.int64)
        moved_steps = np.array([added[time] for time in moved_times.tolist()], np.int64)
        self._add(moved_times, moved_steps)
        return assigned, np.concatenate((times[free], moved_times)), np.concatenate((steps[free], moved_steps))

    def _remember(self, time: int, step: int, moved: int) -> None:
        if len(self._moved) >= _MOST_MOVED:
            self._moved.clear()
        if len(self._next) >= _MOST_MOVED:
            self._next.clear()
        self._moved[time, step] = moved
        self._next[time] = moved + 1

    def _is_known(self, time: int) -> bool:
        for block in self._blocks:
            if block.first <= time <= block.last:
                index = int(np.searchsorted(block.times, time))
                if block.times[index] == time:
                    return True
        return False

    def _look_up(self, times: _Int64) -> tuple[_Int64, NDArray[np.bool_]]:
        """Return the step that each time already belongs to, or 0, and whether there is one."""
        steps: _Int64 = np.zeros(len(times), np.int64)
        known: NDArray[np.bool_] = np.zeros(len(times), bool)
        for block in self._overlapping(int(times[0]), int(times[-1])):
            index = np.minimum(np.searchsorted(block.times, times), len(block.times) - 1)
            match = block.times[index] == times
            steps[match] = block.steps[index[match]]
            known |= match
        return steps, known

    def _overlapping(self, first: int, last: int) -> list[_Block]:
        blocks = [block for block in self._blocks if block.first <= last and block.last >= first]
        if len(blocks) <= _MOST_OVERLAPPING:
            return blocks
        times = np.concatenate([block.times for block in blocks])
        steps = np.concatenate([block.steps for block in blocks])
        order = np.argsort(times, kind="stable")
        merged = _Block(times[order], steps[order])
        chosen = {id(block) for block in blocks}
        self._blocks = [*(block for block in self._blocks if id(block) not in chosen), merged]
        return [merged]
