"""Looking at what has arrived since the last look, and raising alerts."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tensormeter.otlp.batch import STEP_METRIC, Event
from tensormeter.server.alerts.config import Rule
from tensormeter.server.alerts.detectors import Detector, make_detector
from tensormeter.server.store import (
    Change,
    DamagedError,
    NotFoundError,
    Points,
    Reading,
    RunRef,
    Selection,
    Series,
    Store,
    StoreUnavailableError,
)
from tensormeter.server.store.models.points import steps_at

__all__ = ["Watcher"]

_MAX_NEW: Final = 10_000
"""Points of one series that one look takes in; if a run delivers more at once, the oldest of them are passed over."""

_MAX_RUNS: Final = 10_000
_STEPS: Final = 100

_SeriesKey = tuple[str, str, str]


@dataclass
class _Pace:
    """When steps were made: their times by the sender's clock, and when the last arrived by ours."""

    times: list[int] = field(default_factory=list)
    arrived: float = 0.0
    stalled: bool = False

    @property
    def median(self) -> float | None:
        """Seconds from step to step."""
        return None if len(self.times) < 3 else float(np.median(np.diff(self.times))) / 1e9


@dataclass
class _Watched:
    """What is remembered of a run that goes on."""

    detectors: dict[tuple[_SeriesKey, int], Detector] = field(default_factory=dict)
    seen: dict[_SeriesKey, int] = field(default_factory=dict)
    said: dict[tuple[str, int], float] = field(default_factory=dict)
    pace: dict[str, _Pace] = field(default_factory=dict)
    stalled: bool = False


class Watcher:
    """Knows a store only through its interface. For one thread."""

    def __init__(self, store: Store, rules: Sequence[Rule], clock: Callable[[], float] = time.monotonic) -> None:
        """Create a watcher; it begins with what arrives from now on.

        Args:
            store: What to look at, and where alerts go.
            rules: What to look for.
            clock: Seconds; tests give their own.
        """
        self._store = store
        self._rules = rules
        self._clock = clock
        self._runs: dict[RunRef, _Watched] = {}
        self._cursor: str | None = None
        with suppress(StoreUnavailableError):  # a disk that fails: from the first look on that succeeds
            self._cursor = store.changes(None).cursor

    def look(self) -> None:
        """Take in what has arrived, and raise alerts about it.

        Raises:
            StoreError: The store cannot be read or written now; the next look goes on from here.
        """
        after = self._cursor
        found = self._store.changes(after)
        if after is None:
            self._cursor = found.cursor
            return
        for change in found.changes:
            try:
                self._take_in(change, after)
                if change.state not in ("running", "stalled"):
                    self._runs.pop(change.run, None)
            except (NotFoundError, DamagedError):  # deleted in between; other runs are watched on
                self._runs.pop(change.run, None)
        self._cursor = found.cursor
        self._look_for_stalls()

    def _take_in(self, change: Change, after: str) -> None:
        ref = change.run
        assert ref.project is not None
        wanted = [
            metric
            for metric in change.metrics
            if any(rule.kind != "stall" and rule.applies(ref.project, metric) for rule in self._rules)
        ]
        stepped = STEP_METRIC in change.metrics
        if not wanted and not stepped:
            return
        reading = self._store.read(ref, Selection([*wanted, STEP_METRIC], after=after))
        if len(self._runs) >= _MAX_RUNS:
            self._runs.pop(next(iter(self._runs)))
        watched = self._runs.setdefault(ref, _Watched())
        self._take_pace(ref, watched, reading)
        for series in reading.series:
            if series.metric in wanted:
                self._take_values(ref, watched, series, reading)

    def _take_values(self, ref: RunRef, watched: _Watched, series: Series, reading: Reading) -> None:
        points = series.points
        assert isinstance(points, Points)
        key = series.process, series.metric, repr((series.kind, series.scope, series.attributes))
        points = points[points.times > watched.seen.get(key, 0)][-_MAX_NEW:]
        if not len(points):
            return
        watched.seen[key] = int(points.times[-1])
        assert ref.project is not None
        for number, rule in enumerate(self._rules):
            if rule.kind == "stall" or not rule.applies(ref.project, series.metric):
                continue
            detector = watched.detectors.setdefault((key, number), make_detector(rule))
            for index, value in enumerate(points.floats().tolist()):
                message = detector(value)
                # If it is not known what is new, detectors learn from it, and say nothing about the past.
                if message is not None and reading.complete is False and self._is_news(watched, series.metric, number):
                    moment = int(points.times[index])
                    self._raise(
                        ref,
                        rule.kind,
                        f"{series.metric}: {message}",
                        moment,
                        {"metric": series.metric, "value": value, "process": series.process},
                        step=_step(reading, series.process, moment),
                    )

    def _is_news(self, watched: _Watched, metric: str, rule: int) -> bool:
        """Whether the rule has not just spoken about the metric, because of another rank, say."""
        now = self._clock()
        if now - watched.said.get((metric, rule), -1e9) < _QUIET:
            return False
        watched.said[metric, rule] = now
        return True

    def _take_pace(self, ref: RunRef, watched: _Watched, reading: Reading) -> None:
        for series in reading.series:
            if series.metric == STEP_METRIC:
                pace = watched.pace.setdefault(series.process, _Pace())
                newest = pace.times[-1] if pace.times else 0
                pace.times = [*pace.times, *(t for t in series.points.times.tolist() if t > newest)][-_STEPS:]
                pace.arrived = self._clock()
        if watched.stalled and any(series.metric == STEP_METRIC for series in reading.series):
            watched.stalled = False
            self._store.mark_stalled(ref, stalled=False)

    def _look_for_stalls(self) -> None:
        now = self._clock()
        for ref, watched in list(self._runs.items()):
            assert ref.project is not None
            rules = [rule for rule in self._rules if rule.kind == "stall" and rule.applies(ref.project)]
            if not rules or watched.stalled or not watched.pace:
                continue
            silent = now - max(pace.arrived for pace in watched.pace.values())
            medians = [pace.median for pace in watched.pace.values() if pace.median is not None]
            if not medians:
                continue
            usual = max(medians)
            for rule in rules:
                if silent > max(rule.factor * usual, rule.seconds):
                    watched.stalled = True
                    try:
                        self._store.mark_stalled(ref, stalled=True)
                        message = f"no step for {silent:.0f} s; a step usually takes {usual:.3g} s"
                        self._raise(ref, "stall", message, time.time_ns(), {"seconds": silent})
                    except (NotFoundError, DamagedError):
                        self._runs.pop(ref, None)
                    break

    def _raise(
        self,
        ref: RunRef,
        kind: str,
        message: str,
        moment: int,
        details: Mapping[str, Any],
        *,
        step: int | None = None,
    ) -> None:
        attributes: dict[str, Any] = {"tensormeter.alert.kind": kind, "tensormeter.alert.source": "server"}
        if "metric" in details:
            attributes["tensormeter.key"] = details["metric"]
        if step is not None:
            attributes["tensormeter.step"] = step
        body = {"kind": kind, "message": message, **details}
        number, text = _SEVERITIES.get(kind, _SEVERE)
        alert = Event("tensormeter.alert", moment, body, attributes, severity_number=number, severity_text=text)
        self._store.raise_alert(ref, alert)


_SEVERE: Final = (13, "WARN")
_SEVERITIES: Final = {"nan": (17, "ERROR")}
"""Severity of alerts, by kind."""

_QUIET: Final = 60.0
"""Seconds in which one rule speaks once about one metric of one run."""


def _step(reading: Reading, process: str, moment: int) -> int | None:
    for series in reading.series:
        if series.metric == STEP_METRIC and series.process == process and isinstance(series.points, Points):
            found, stepped = steps_at(series.points, np.array([moment], np.int64))
            if stepped[0]:
                return int(found[0])
    return None
