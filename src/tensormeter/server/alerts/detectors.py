"""Detectors: fed with the values of one series, in order, they say at which something begins to be wrong."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from tensormeter.server.alerts.config import Rule

__all__ = ["Detector", "make_detector"]

Detector = Callable[[float], str | None]
"""Takes the next value; returns what is wrong, in words, when it begins to be."""

_MIN_VALUES: Final = 20
_MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution
_CALM: Final = 20
"""Values without trouble after which the next trouble is a new one."""


def make_detector(rule: Rule) -> Detector:
    """A detector for one series, with a memory of its own."""
    match rule.kind:
        case "nan":
            return _Once(_not_finite)
        case "spike":
            return _Once(_Spike(rule))
        case "threshold":
            return _Once(_beyond(rule), calm=1)
        case _:
            raise AssertionError(rule.kind)


class _Once:
    """Says what is wrong once, and again only after some calm."""

    def __init__(self, test: Detector, calm: int = _CALM) -> None:
        self._test = test
        self._wanted = calm
        self._calm = calm

    def __call__(self, value: float) -> str | None:
        found = self._test(value)
        if found is None:
            self._calm += 1
            return None
        is_new = self._calm >= self._wanted
        self._calm = 0
        return found if is_new else None


class _Spike:
    """A value far above the median of those before it, in robust standard deviations.

    Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993). The scale is at least a hundredth of the median, so that
    a series that hardly moves may move a little.
    """

    def __init__(self, rule: Rule) -> None:
        self._score = rule.score
        self._values: deque[float] = deque(maxlen=rule.window)

    def __call__(self, value: float) -> str | None:
        if not math.isfinite(value):
            return None
        found = None
        if len(self._values) >= _MIN_VALUES:
            before = np.array(self._values)
            median = float(np.median(before))
            scale = max(_MAD_TO_SIGMA * float(np.median(np.abs(before - median))), 0.01 * abs(median), 1e-12)
            if (value - median) / scale > self._score:
                score = (value - median) / scale
                found = f"{value:.6g} is {score:.1f} robust standard deviations above the median {median:.6g}"
        self._values.append(value)
        return found


def _not_finite(value: float) -> str | None:
    return None if math.isfinite(value) else f"the value is {value}"


def _beyond(rule: Rule) -> Detector:
    def test(value: float) -> str | None:
        if rule.above is not None and value > rule.above:
            return f"{value:.6g} is above {rule.above:.6g}"
        if rule.below is not None and value < rule.below:
            return f"{value:.6g} is below {rule.below:.6g}"
        return None

    return test
