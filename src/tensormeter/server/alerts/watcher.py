"""The watcher of a store, which checks new points against rules and raises alerts."""

import fnmatch
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tensormeter.conventions.semconv import ALERT_EVENT, ALERT_KIND, ALERT_SOURCE, MEDIA_KEY, STEP_METRIC
from tensormeter.otlp.batch import Event
from tensormeter.server.alerts.config import MAX_AGE, Rule
from tensormeter.server.alerts.followed import MAX_METRICS, Followed, SeriesKey
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
    TooManyPointsError,
)
from tensormeter.server.store.models.points import steps_at

__all__ = ["Watcher"]

_MAX_NEW: Final = 10_000
"""Maximum number of new points of one series in one check. If more have arrived, the oldest are skipped."""

_MAX_METRICS: Final = 10_000
"""Maximum number of metrics to read at once. SQLite limits the number of values in a query."""

_MAX_RUNS: Final = 10_000
_STEPS: Final = 100

_log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """The end of a check after `Watcher.stop`."""


@dataclass
class _Pace:
    """Pace of one process: the times of its latest steps, and the arrival time of its newest step.

    Step times are from the sender's clock, and the arrival time is from the server's clock.
    """

    times: list[int] = field(default_factory=list)
    arrived: float = 0.0

    @property
    def median(self) -> float | None:
        """Median time between steps in seconds; None if there are fewer than three steps."""
        return None if len(self.times) < 3 else float(np.median(np.diff(self.times))) / 1e9


@dataclass
class _RunState:
    """Detector state of a run in progress.

    Attributes:
        followed: Metrics and detectors of each rule, by number of the rule. Stall rules have none.
        names: Digest of the names among which metrics to follow were found; None before.
        last_times: Time of the newest checked point of each series with detectors.
        last_alerts: Time of the last alert, by metric and number of the rule.
        pace: Pace of each process.
        stalled: Whether the run is marked as stalled.
    """

    followed: dict[int, Followed]
    names: bytes | None = None
    last_times: dict[SeriesKey, int] = field(default_factory=dict)
    last_alerts: dict[tuple[str, int], float] = field(default_factory=dict)
    pace: dict[str, _Pace] = field(default_factory=dict)
    stalled: bool = False


class Watcher:
    """Watcher of all runs in a store. It uses the store's public interface. Not thread-safe, except for `stop`."""

    def __init__(self, store: Store, rules: Sequence[Rule], clock: Callable[[], float] = time.monotonic) -> None:
        """Create a watcher for points that arrive from now on.

        Args:
            store: Store to watch and to add alerts to.
            rules: Rules to check.
            clock: Monotonic clock in seconds.
        """
        self._store = store
        self._rules = rules
        self._clock = clock
        self._runs: dict[RunRef, _RunState] = {}
        self._cursor: str | None = None
        self._is_stopping = False
        with suppress(StoreUnavailableError):  # if the disk fails, watching starts at the first successful check
            self._cursor = store.changes(None).cursor

    def stop(self) -> None:
        """Make a running check return soon, and later checks immediately. Any thread may call it. Does not block."""
        self._is_stopping = True

    def check(self) -> None:
        """Check the points that have arrived since the last check, and raise alerts.

        Raises:
            StoreError: The store cannot be read or written now. The next check continues where this one stopped.
        """
        with suppress(_StoppedError):
            self._check()

    def _check(self) -> None:
        self._check_running()
        after = self._cursor
        changes = self._store.changes(after)
        if after is None:
            self._cursor = changes.cursor
            return
        for change in changes.changes:
            self._check_running()
            try:
                self._check_run(change, after)
                if change.state not in ("running", "stalled"):
                    self._runs.pop(change.run, None)
            except (NotFoundError, DamagedError):  # the run was deleted or is damaged; continue with other runs
                self._runs.pop(change.run, None)
            except TooManyPointsError as error:  # only if the start of an attempt has changed
                _log.warning("tensormeter: alert rules skip new points of run %r: %s", change.run.run_id, error)
                self._runs.pop(change.run, None)
        self._cursor = changes.cursor
        self._check_stalls()

    def _check_run(self, change: Change, after: str) -> None:
        if not change.metrics and not change.many:
            return
        ref = change.run
        state = self._runs.get(ref) or self._new_state(ref)
        new_non_finite = {
            number: self._follow_non_finite(change, followed, after)
            for number, followed in state.followed.items()
            if followed.rule.kind == "nan"
        }
        self._follow_new(change, state)
        metrics = {metric for followed in state.followed.values() for metric in followed.metrics}
        metrics = metrics if change.many else metrics.intersection(change.metrics)
        if not metrics and not change.many and STEP_METRIC not in change.metrics:
            return
        if ref not in self._runs and len(self._runs) >= _MAX_RUNS:
            self._runs.pop(next(iter(self._runs)))
        self._runs[ref] = state
        ordered = sorted(metrics)
        for first in range(0, max(len(ordered), 1), _MAX_METRICS):
            part = {*ordered[first : first + _MAX_METRICS]}
            selection = Selection([*part, STEP_METRIC], after=after, check=self._check_running)
            reading = self._store.read(ref, selection)
            if first == 0:
                self._update_pace(ref, state, reading)
            for series in reading.series:
                self._check_running()
                if series.metric in part:
                    self._check_values(ref, state, series, reading)
        for number, names in new_non_finite.items():
            state.followed[number].drop_quiet(names)
        if new_non_finite:
            checked = {series for followed in state.followed.values() for series in followed.detectors}
            state.last_times = {series: last for series, last in state.last_times.items() if series in checked}

    def _new_state(self, ref: RunRef) -> _RunState:
        assert ref.project is not None
        return _RunState(
            {
                number: Followed(ref, rule)
                for number, rule in enumerate(self._rules)
                if rule.kind != "stall" and rule.applies(ref.project)
            }
        )

    def _follow_non_finite(self, change: Change, followed: Followed, after: str) -> Collection[str]:
        """Let a `nan` rule follow the metrics with new NaN or infinite values, and return their names."""
        pattern = followed.rule.metric
        if not change.many and not fnmatch.filter(change.metrics, pattern):
            return ()
        names = self._store.non_finite(change.run, after, pattern, MAX_METRICS + 1)
        followed.add(names)
        return set(names)

    def _follow_new(self, change: Change, state: _RunState) -> None:
        """Let the other rules follow the metrics that match them."""
        rules = [followed for followed in state.followed.values() if followed.rule.kind != "nan"]
        names = change.metrics
        if change.many and rules:
            table = self._store.names(change.run)
            if table.digest == state.names:
                return
            state.names = table.digest
            names = [name.decode(errors="surrogatepass") for name in table.names()]
        for followed in rules:
            followed.add(fnmatch.filter(names, followed.rule.metric))

    def _check_running(self) -> None:
        if self._is_stopping:
            raise _StoppedError

    def _check_values(self, ref: RunRef, state: _RunState, series: Series, reading: Reading) -> None:
        points = series.points
        assert isinstance(points, Points)
        key = series.process, series.metric, repr((series.kind, series.scope, series.attributes))
        points = points[points.times > state.last_times.get(key, 0)][-_MAX_NEW:]
        if not len(points):
            return
        is_finite = not points.non_finite().any()
        oldest = time.time_ns() - MAX_AGE
        for number, followed in state.followed.items():
            if series.metric not in followed.metrics:
                continue
            rule = followed.rule
            # Runs may have many series. Those without NaN need no detectors.
            detector = followed.detector(key, create=rule.kind != "nan" or not is_finite)
            if detector is None:
                continue
            state.last_times[key] = int(points.times[-1])
            for index, value in enumerate(points.floats().tolist()):
                message = detector(value)
                moment = int(points.times[index])
                # A complete reading may contain points that were checked before. For these and for imported points,
                # update the detectors without raising alerts.
                is_new = reading.complete is False and moment >= oldest
                if message is not None and is_new and self._is_due(state, series.metric, number):
                    self._raise(
                        ref,
                        rule.kind,
                        f"{series.metric}: {message}",
                        moment,
                        {"metric": series.metric, "value": value, "process": series.process},
                        step=_step(reading, series.process, moment),
                    )

    def _is_due(self, state: _RunState, metric: str, rule: int) -> bool:
        """Return whether `_MIN_INTERVAL` has passed since the rule's last alert about the metric, on any rank.

        If so, record the current time as the time of the last alert.
        """
        now = self._clock()
        if now - state.last_alerts.get((metric, rule), -1e9) < _MIN_INTERVAL:
            return False
        state.last_alerts[metric, rule] = now
        return True

    def _update_pace(self, ref: RunRef, state: _RunState, reading: Reading) -> None:
        oldest = time.time_ns() - MAX_AGE
        for series in reading.series:
            if series.metric == STEP_METRIC and len(series.points) and series.points.times[-1] >= oldest:
                pace = state.pace.setdefault(series.process, _Pace())
                newest = pace.times[-1] if pace.times else 0
                pace.times = [*pace.times, *(t for t in series.points.times.tolist() if t > newest)][-_STEPS:]
                pace.arrived = self._clock()
        if state.stalled and any(series.metric == STEP_METRIC for series in reading.series):
            state.stalled = False
            self._store.mark_stalled(ref, stalled=False)

    def _check_stalls(self) -> None:
        now = self._clock()
        for ref, state in list(self._runs.items()):
            assert ref.project is not None
            rules = [rule for rule in self._rules if rule.kind == "stall" and rule.applies(ref.project)]
            if not rules or state.stalled or not state.pace:
                continue
            silent = now - max(pace.arrived for pace in state.pace.values())
            medians = [pace.median for pace in state.pace.values() if pace.median is not None]
            if not medians:
                continue
            usual = max(medians)
            for rule in rules:
                if silent > max(rule.factor * usual, rule.seconds):
                    state.stalled = True
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
        attributes: dict[str, Any] = {ALERT_KIND: kind, ALERT_SOURCE: "server"}
        if "metric" in details:
            attributes[MEDIA_KEY] = details["metric"]
        if step is not None:
            attributes[STEP_METRIC] = step
        body = {"kind": kind, "message": message, **details}
        number, text = _SEVERITIES.get(kind, _SEVERE)
        alert = Event(ALERT_EVENT, moment, body, attributes, severity_number=number, severity_text=text)
        self._store.raise_alert(ref, alert)


_SEVERE: Final = (13, "WARN")
_SEVERITIES: Final = {"nan": (17, "ERROR")}
"""OTLP severity number and text of alerts, by kind of rule."""

_MIN_INTERVAL: Final = 60.0
"""Minimum seconds between two alerts about the same rule, metric and run."""


def _step(reading: Reading, process: str, moment: int) -> int | None:
    for series in reading.series:
        if series.metric == STEP_METRIC and series.process == process and isinstance(series.points, Points):
            steps, stepped = steps_at(series.points, np.array([moment], np.int64))
            if stepped[0]:
                return int(steps[0])
    return None
