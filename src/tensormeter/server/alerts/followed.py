"""The metrics of a run that a rule follows, with a detector for each of their series."""

import logging
from collections.abc import Collection, Iterable
from typing import Final

from tensormeter.server.alerts.config import Rule
from tensormeter.server.alerts.detectors import Detector, make_detector
from tensormeter.server.store import RunRef

__all__ = ["MAX_METRICS", "MAX_SERIES", "Followed", "SeriesKey"]

MAX_METRICS: Final = 1_000
"""Maximum number of metrics of a run that a rule follows."""

MAX_SERIES: Final = 10_000
"""Maximum number of series of a run that a rule follows. The metrics of a run of many processes have many series."""

SeriesKey = tuple[str, str, str]
"""Process and metric of a series, and a text that distinguishes its series of the same name."""

_log = logging.getLogger(__name__)


class Followed:
    """The metrics that one rule follows in one run.

    Attributes:
        rule: The rule.
        metrics: Names of the metrics.
        detectors: Detectors by series. A `nan` rule has detectors only for series that had NaN or infinite values lately.
    """

    def __init__(self, ref: RunRef, rule: Rule) -> None:
        self.rule = rule
        self.metrics: set[str] = set()
        self.detectors: dict[SeriesKey, Detector] = {}
        self._ref = ref
        self._is_reported = False

    @property
    def is_full(self) -> bool:
        """Whether the rule cannot follow more metrics."""
        return len(self.metrics) >= MAX_METRICS or len(self.detectors) >= MAX_SERIES

    def add(self, metrics: Iterable[str]) -> None:
        """Follow metrics that match the rule. If there are too many, log a warning."""
        for metric in metrics:
            if metric not in self.metrics:
                if self.is_full:
                    self._report()
                    return
                self.metrics.add(metric)

    def detector(self, series: SeriesKey, *, create: bool) -> Detector | None:
        """Return the detector of a series; None if there is none and `create` is False, or if there are too many."""
        detector = self.detectors.get(series)
        if detector is None and create:
            if len(self.detectors) >= MAX_SERIES:
                self._report()
            else:
                detector = self.detectors[series] = make_detector(self.rule)
        return detector

    def drop_quiet(self, non_finite: Collection[str]) -> None:
        """Stop following metrics without NaN or infinite values, except series whose next problem is not reported yet.

        Args:
            non_finite: Metrics with new NaN or infinite values. Their points may be read again, so their detectors are kept.
        """
        self.detectors = {
            key: detector for key, detector in self.detectors.items() if key[1] in non_finite or not detector.is_quiet
        }
        self.metrics = {key[1] for key in self.detectors}

    def _report(self) -> None:
        if not self._is_reported:
            self._is_reported = True
            _log.warning(
                "tensormeter: the alert rule `%s` for metrics %r does not check all metrics of run %r in project %r, because"
                " a rule follows at most %d metrics and %d series of a run; use a narrower pattern",
                *(self.rule.kind, self.rule.metric, self._ref.run_id, self._ref.project, MAX_METRICS, MAX_SERIES),
            )
