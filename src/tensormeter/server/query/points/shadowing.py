"""Shadowing of points that a later attempt repeats, and grouping of series from several attempts into one line.

A preempted run continues from its last checkpoint and therefore logs some steps twice. An attempt shadows a point of a
lower-numbered attempt if the point was logged before the attempt began, and its step is not below the attempt's first step
of the same metric. Other metrics stay as they are, so an evaluation that resumes a run hides nothing. Shadowed points are
not deleted, and a query can ask for them. Points logged after the attempt began come from concurrent processes, so the
attempt does not shadow them. Points without a step (host metrics, instruments) are never shadowed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

import numpy as np

from tensormeter.server.store import Points, ProcessAttempt, Series, SeriesRollup
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.point_range import Track, kept
from tensormeter.server.store.models.points import steps_at

__all__ = ["AttemptChoice", "Attempts"]

AttemptChoice = int | Literal["all"] | None
"""Attempt number; `all` for every attempt as a separate line; None for the effective line, without shadowed points."""

_Piece = TypeVar("_Piece", Series, SeriesRollup)
_T = TypeVar("_T")

_FIRST: Final = ProcessAttempt(1, {}, 0, None)


@dataclass(frozen=True)
class Attempts:
    """Attempts of one run, and the attempts that a query asks for.

    Attributes:
        by_process: Attempt of each process; empty if all processes belong to attempt 1.
        choice: Attempts that the query asks for.
    """

    by_process: Mapping[str, ProcessAttempt]
    choice: AttemptChoice = None

    def number(self, process: str) -> int:
        """Return the number of the attempt to which a process belongs."""
        return self.by_process.get(process, _FIRST).number

    def select(self, series: Iterable[_Piece]) -> list[_Piece]:
        """Return the series of the attempts that the query asks for."""
        if isinstance(self.choice, int):
            return [piece for piece in series if self.number(piece.process) == self.choice]
        return list(series)

    def shadowed(self) -> dict[Track, Sequence[tuple[int, int]]]:
        """Return the starts of later attempts as pairs (step, time), by the process and metric whose points they shadow.

        The result covers the metrics with which the attempts were read. It is empty unless the query asks for the effective
        line.
        """
        if self.choice is not None:
            return {}
        starts = self.starts()
        shadowed: dict[Track, Sequence[tuple[int, int]]] = {}
        for process, attempt in self.by_process.items():
            for metric, by_number in starts.items():
                later = [start for number, start in by_number.items() if number > attempt.number]
                if later:
                    shadowed[process, metric] = later
        return shadowed

    def starts(self) -> dict[str, dict[int, tuple[int, int]]]:
        """Return the first step of each metric in each later attempt, and when that attempt began, by metric and number."""
        began: dict[int, int] = {}
        for attempt in self.by_process.values():
            if attempt.began:
                began[attempt.number] = min(began.get(attempt.number, attempt.began), attempt.began)
        starts: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        for attempt in self.by_process.values():
            for metric, step in attempt.first_steps.items():
                by_number = starts[metric]
                lowest = min(by_number[attempt.number][0], step) if attempt.number in by_number else step
                by_number[attempt.number] = lowest, began.get(attempt.number, 0)
        return starts

    def remove_shadowed(self, series: Iterable[Series], steps: Iterable[Series]) -> list[Series]:
        """Remove shadowed points, and any series that becomes empty.

        Args:
            series: Series of any processes.
            steps: Series of `tensormeter.step` for the processes of shadowed series, covering at least the time range of
                `series`.
        """
        shadowed = self.shadowed()
        logged: dict[str, list[Points]] = defaultdict(list)
        for step_series in steps:
            if isinstance(step_series.points, Points):
                logged[step_series.process].append(step_series.points)
        joined = {process: Points.concat(parts).distinct() for process, parts in logged.items()}
        no_steps = Points.empty()
        remaining = (
            _remove(piece, shadowed[piece.process, piece.metric], joined.get(piece.process, no_steps))
            if (piece.process, piece.metric) in shadowed
            else piece
            for piece in series
        )
        return [piece for piece in remaining if len(piece.points)]

    def group_series(self, series: Sequence[_Piece]) -> list[list[_Piece]]:
        """Group series into lines. A line has one series per attempt, from processes of the same rank, in attempt order.

        If an attempt has several series for a line, it is ambiguous which of them continues the line. Each series in
        the group then becomes a separate line.
        """

        def identity(piece: _Piece) -> tuple[object, ...]:
            return piece.metric, piece.kind, piece.scope, piece.unit, canonical_json(piece.attributes)

        return self._group(series, lambda piece: piece.process, identity)

    def group_processes(self, processes: Iterable[str]) -> list[list[str]]:
        """Group processes as `group_series` does, omitting attempts that the query does not ask for."""
        selected = [
            process for process in processes if not isinstance(self.choice, int) or self.number(process) == self.choice
        ]
        return self._group(selected, lambda process: process, lambda process: ())

    def _group(
        self, items: Sequence[_T], process_of: Callable[[_T], str], identity: Callable[[_T], tuple[object, ...]]
    ) -> list[list[_T]]:
        if self.choice is not None or not self.by_process:
            return [[item] for item in items]
        by_identity: dict[tuple[object, ...], list[_T]] = defaultdict(list)
        for item in items:
            rank = self.by_process.get(process_of(item), _FIRST).rank
            by_identity[(*identity(item), rank)].append(item)
        groups = []
        for group in by_identity.values():
            numbers = [self.number(process_of(item)) for item in group]
            if len(set(numbers)) == len(numbers):
                groups.append([group[index] for index in np.argsort(numbers)])
            else:
                groups += [[item] for item in group]
        return groups


def _remove(series: Series, begins: Iterable[tuple[int, int]], steps: Points) -> Series:
    times = series.points.times
    mask = kept(times, *steps_at(steps, times), begins)
    return series if mask.all() else replace(series, points=series.points[mask])
