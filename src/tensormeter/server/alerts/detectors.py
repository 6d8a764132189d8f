"""Detectors: functions that receive the values of a series in order, and return a message when a problem begins."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from tensormeter.server.alerts.config import Rule

__all__ = ["Detector", "make_detector"]

_Test = Callable[[float], str | None]
"""Function that receives the next value, and returns a message if the value is a problem, otherwise None."""

_MIN_VALUES: Final = 20
_MAD_TO_SIGMA: Final = 1.4826  # for a normal distribution
_QUIET_VALUES: Final = 20
"""Number of consecutive normal values after which the next problem is reported."""


class Detector:
    """Detector that reports a problem once, and the next one only after `quiet_values` consecutive normal values."""

    def __init__(self, test: _Test, quiet_values: int = _QUIET_VALUES) -> None:
        self._test = test
        self._required = quiet_values
        self._quiet = quiet_values

    @property
    def is_quiet(self) -> bool:
        """Whether the next problem would be reported. A quiet detector of NaN values equals a new one."""
        return self._quiet >= self._required

    def __call__(self, value: float) -> str | None:
        """Check the next value, and return a message if a problem begins with it, otherwise None."""
        message = self._test(value)
        if message is None:
            self._quiet += 1
            return None
        is_new = self.is_quiet
        self._quiet = 0
        return message if is_new else None


def make_detector(rule: Rule) -> Detector:
    """Create a detector for one series."""
    match rule.kind:
        case "nan":
            return Detector(_not_finite)
        case "spike":
            return Detector(_Spike(rule))
        case "threshold":
            return Detector(_beyond(rule), quiet_values=1)
        case _:
            raise AssertionError(rule.kind)


class _Spike:
    """Detector of values far above the median of the previous values, measured in robust standard deviations.

    See Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993). The standard deviation is assumed to be at
    least 1% of the median, so that small changes in a nearly constant series are not spikes.
    """

    def __init__(self, rule: Rule) -> None:
        self._score = rule.score
        self._values: deque[float] = deque(maxlen=rule.window)

    def __call__(self, value: float) -> str | None:
        if not math.isfinite(value):
            return None
        message = None
        if len(self._values) >= _MIN_VALUES:
            before = np.array(self._values)
            median = float(np.median(before))
            scale = max(_MAD_TO_SIGMA * float(np.median(np.abs(before - median))), 0.01 * abs(median), 1e-12)
            if (value - median) / scale > self._score:
                score = (value - median) / scale
                message = f"{value:.6g} is {score:.1f} robust standard deviations above the median {median:.6g}"
        self._values.append(value)
        return message


def _not_finite(value: float) -> str | None:
    return None if math.isfinite(value) else f"the value is {value}"


def _beyond(rule: Rule) -> _Test:
    def test(value: float) -> str | None:
        if rule.above is not None and value > rule.above:
            return f"{value:.6g} is above {rule.above:.6g}"
        if rule.below is not None and value < rule.below:
            return f"{value:.6g} is below {rule.below:.6g}"
        return None

    return test
