"""The reader of logged values, which returns what is recorded for a value of any type."""

from typing import Any

from tensormeter.errors import join_choices
from tensormeter.record.device.device_copies import DeviceCopies
from tensormeter.record.histogram.histogram import DeviceDistribution, Histogram, HostDistribution
from tensormeter.record.histogram.pooling import POOLED
from tensormeter.record.loggable_values import Parts, as_loggable
from tensormeter.record.media.item import Media
from tensormeter.record.reduction.reduction import Rule
from tensormeter.record.reduction.rules import Rules
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, check_name, classify
from tensormeter.record.warn_once import describe
from tensormeter.ring.format import Drop

__all__ = ["ValueReader"]

_Number = float | int | DeviceValue | Deferred | HostDistribution | DeviceDistribution


class ValueReader:
    """Reads the values of one recorder. Any thread may use it."""

    def __init__(self, device: DeviceCopies, rules: Rules) -> None:
        """
        Args:
            device: Copies of device values, which are prepared for each device that a value is on.
            rules: Reduction rules, which decide how a distribution can be reduced.
        """
        self._device = device
        self._rules = rules

    def read(self, key: str, value: Any, rule: Rule | None) -> _Number | Media | Parts:
        """Return what is recorded for a value.

        Args:
            key: Name of the value.
            value: Value other than a media item or a string.
            rule: Rule of the log call; None if it has none.

        Raises:
            Refused: The value cannot be recorded.
        """
        check_name(key)
        if value is None:
            raise Refused("the value is None; log a number, or leave the key out", Drop.NONE_VALUE)
        try:
            return self.number(key, value, rule)
        except Refused as refusal:
            if issubclass(type(value), Histogram):
                raise
            reason = refusal
        try:
            loggable = as_loggable(value, reason)
        except Refused:
            raise
        except Exception as error:  # errors in the value's own code must not stop the program
            raise Refused(f"cannot read its value ({describe(error)})") from None
        return self.number(key, loggable, rule) if isinstance(loggable, Histogram | float | int) else loggable

    def number(self, key: str, value: Any, rule: Rule | None) -> _Number:
        """Return what is recorded for a number or a `Histogram`. The arguments are those of `read`.

        Raises:
            Refused: The value is neither, or cannot be recorded.
        """
        try:
            if isinstance(value, Histogram):
                for applied in self._rules.of((key,), rule).values():
                    if applied.reduce not in POOLED:
                        raise Refused(f"cannot reduce a Histogram with {applied.reduce!r}; use {join_choices(*POOLED)}")
                distribution = value.reduce()
                if isinstance(distribution, DeviceDistribution):
                    self._device.prepare(distribution.tensor)
                return distribution
            number = classify(value)
            if isinstance(number, DeviceValue):
                self._device.prepare(number.tensor)
        except Refused:
            raise
        except Exception as error:  # errors in the value's own code must not stop the program
            raise Refused(f"cannot read its value ({describe(error)})") from None
        return number
