"""Attempts at a run: what a later one shadows of the earlier ones, and how their pieces become one line.

A run that was preempted goes on from its last checkpoint, so it logs some steps again. An attempt shadows, from its first
step on, what attempts of lower numbers had logged before it began: that is not shown, unless somebody asks for it. Nothing
is deleted. What was logged later is of processes that ran beside it, whatever number they have, and stays.
What was logged without a step (statistics of the machine, instruments) repeats nothing, and is never shadowed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

import numpy as np

from tensormeter.errors import UsageError
from tensormeter.server.store import Points, ProcessAttempt, Series, Thinned
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.point_range import kept
from tensormeter.server.store.models.points import steps_at

__all__ = ["AttemptChoice", "Attempts", "parse_attempt"]

AttemptChoice = int | Literal["all"] | None
"""One attempt, whole; all of them, whole and apart; or None: the effective line."""

_Piece = TypeVar("_Piece", Series, Thinned)
_T = TypeVar("_T")

_LAST: Final = 999_999_999
_FIRST: Final = ProcessAttempt(1, None, 0, None)


def parse_attempt(text: object) -> AttemptChoice:
    """`attempt` of a request: a number from 1, `all`, or nothing.

    Raises:
        UsageError: It is none of these.
    """
    if text is None or text == "":
        return None
    if text == "all":
        return "all"
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= len(str(_LAST)):
        text = int(text)
    if isinstance(text, int) and not isinstance(text, bool) and 1 <= text <= _LAST:
        return text
    raise UsageError(f"attempt: expected a number from 1, or all, got {str(text)[:40]!r}")


@dataclass(frozen=True)
class Attempts:
    """The attempts of one run, and which of them are wanted.

    Attributes:
        of: By process; empty if there is only one attempt.
        choice: Which are wanted.
    """

    of: Mapping[str, ProcessAttempt]
    choice: AttemptChoice = None

    def number(self, process: str) -> int:
        """Which attempt a process belongs to."""
        return self.of.get(process, _FIRST).number

    def chosen(self, series: Iterable[_Piece]) -> list[_Piece]:
        """Those of the attempt that is wanted."""
        if isinstance(self.choice, int):
            return [one for one in series if self.number(one.process) == self.choice]
        return list(series)

    def shadowed(self) -> dict[str, list[tuple[int, int]]]:
        """For each process that is shadowed: (step, time) where each later attempt begins. Empty if all is wanted."""
        if self.choice is not None:
            return {}
        begins: dict[int, tuple[int, int]] = {}
        for one in self.of.values():
            if one.first_step is not None:
                step, began = begins.get(one.number, (one.first_step, one.began))
                begins[one.number] = min(step, one.first_step), min(began, one.began)
        found = {}
        for process, one in self.of.items():
            later = [begin for number, begin in begins.items() if number > one.number]
            if later:
                found[process] = later
        return found

    def effective(self, series: Iterable[Series], steps: Iterable[Series]) -> list[Series]:
        """Without what is shadowed, and without what is then empty.

        Args:
            series: Of any processes.
            steps: `tensormeter.step` of those that are shadowed, at the times of their series at least.
        """
        shadowed = self.shadowed()
        logged: dict[str, list[Points]] = defaultdict(list)
        for one in steps:
            if isinstance(one.points, Points):
                logged[one.process].append(one.points)
        joined = {process: Points.concat(parts).distinct() for process, parts in logged.items()}
        no_steps = Points.empty()
        cut = (
            _cut(one, shadowed[one.process], joined.get(one.process, no_steps)) if one.process in shadowed else one
            for one in series
        )
        return [one for one in cut if len(one.points)]

    def lines(self, series: Sequence[_Piece]) -> list[list[_Piece]]:
        """Which series are pieces of one line, in the order of attempts: those of one rank, one for each attempt.

        Where an attempt has several of a rank, nobody knows which one goes on; they stay apart.
        """

        def about(one: _Piece) -> tuple[object, ...]:
            return one.metric, one.kind, one.scope, one.unit, canonical_json(one.attributes)

        return self._joined(series, lambda one: one.process, about)

    def ranks(self, processes: Iterable[str]) -> list[list[str]]:
        """As `lines`, of processes; without those of attempts that are not wanted."""
        wanted = [one for one in processes if not isinstance(self.choice, int) or self.number(one) == self.choice]
        return self._joined(wanted, lambda one: one, lambda one: ())

    def _joined(
        self, items: Sequence[_T], process: Callable[[_T], str], about: Callable[[_T], tuple[object, ...]]
    ) -> list[list[_T]]:
        if self.choice is not None or not self.of:
            return [[one] for one in items]
        groups: dict[tuple[object, ...], list[_T]] = defaultdict(list)
        for one in items:
            groups[(*about(one), self.of.get(process(one), _FIRST).rank)].append(one)
        found = []
        for group in groups.values():
            numbers = [self.number(process(one)) for one in group]
            if len(set(numbers)) == len(numbers):
                found.append([group[index] for index in np.argsort(numbers)])
            else:
                found += [[one] for one in group]
        return found


def _cut(series: Series, begins: Iterable[tuple[int, int]], steps: Points) -> Series:
    times = series.points.times
    mask = kept(times, *steps_at(steps, times), begins)
    return series if mask.all() else replace(series, points=series.points[mask])
