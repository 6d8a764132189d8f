"""Counters, up-down counters, gauges and histograms.

Thread-safe, usable in signal handlers and after a fork. A measurement of an ordinary number with attributes seen before is
two dictionary look-ups and one write to memory. A tensor on a device is copied in stream order, without waiting for it.

No exemplars are recorded, as the API allows: to ask for the current span, and whether it is sampled, takes longer than the rest
of the measurement. `context` goes to further metric readers only, whose SDK makes exemplars by itself.
"""

import sys
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.util.types import Attributes

from tensormeter.instruments.forwarding import Forward
from tensormeter.instruments.streams import Binder
from tensormeter.record.dynamo import break_graph

__all__ = ["Counter", "Gauge", "Histogram", "UpDownCounter"]

_MOST: Final = sys.float_info.max
_MOST_INT: Final = (1 << 63) - 1


class _Synchronous:
    """What the four have. Made by a meter."""

    def __init__(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        binder: Binder,
        forward: Forward | None,
    ) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self._bind = binder.bind
        self._exact = binder.exact
        self._forward = forward

    def __repr__(self) -> str:
        return f"<tensormeter {type(self).__name__} {self.name!r}>"


class Counter(_Synchronous, metrics.Counter):
    """Adds up increments that are not negative. Others, NaN and infinities are refused: warned about once, and counted."""

    def add(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Add a number, or a tensor or array with one element. See the module's text."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:  # not seen before, or no mapping, or whatever a value raises
            stream = self._bind(attributes)
        place = None
        if amount.__class__ is float and 0.0 <= amount <= _MOST:
            stream.write_float({stream.name: amount}, 0)
        elif amount.__class__ is int and 0 <= amount <= _MOST_INT:
            stream.write_int({stream.name: amount}, 0)
        else:
            place = stream.record(amount)
        if self._forward is not None:
            self._forward(amount, attributes, context, place)


class UpDownCounter(_Synchronous, metrics.UpDownCounter):
    """Adds up increments and decrements. NaN and infinities are refused: warned about once, and counted."""

    def add(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Add a number, or a tensor or array with one element. See the module's text."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:
            stream = self._bind(attributes)
        place = None
        if amount.__class__ is float and -_MOST <= amount <= _MOST:
            stream.write_float({stream.name: amount}, 0)
        elif amount.__class__ is int and -_MOST_INT <= amount <= _MOST_INT:
            stream.write_int({stream.name: amount}, 0)
        else:
            place = stream.record(amount)
        if self._forward is not None:
            self._forward(amount, attributes, context, place)


class Gauge(_Synchronous, metrics._Gauge):
    """Keeps every value, each at its own time. NaN and infinities are values."""

    def set(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record a number, or a tensor or array with one element. See the module's text."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:
            stream = self._bind(attributes)
        place = None
        if amount.__class__ is float:
            stream.write_float({stream.name: amount}, 0)
        elif amount.__class__ is int and -_MOST_INT <= amount <= _MOST_INT:
            stream.write_int({stream.name: amount}, 0)
        else:
            place = stream.record(amount)
        if self._forward is not None:
            self._forward(amount, attributes, context, place)


class Histogram(_Synchronous, metrics.Histogram):
    """Counts values by bucket. NaN and infinities are refused: warned about once, and counted. Negative ones are values."""

    def record(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record a number, or a tensor or array with one element. See the module's text."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:
            stream = self._bind(attributes)
        place = None
        if amount.__class__ is float and -_MOST <= amount <= _MOST:
            stream.write_float({stream.name: amount}, 0)
        elif amount.__class__ is int and -_MOST_INT <= amount <= _MOST_INT:
            stream.write_int({stream.name: amount}, 0)
        else:
            place = stream.record(amount)
        if self._forward is not None:
            self._forward(amount, attributes, context, place)


for _method in (Counter.add, UpDownCounter.add, Gauge.set, Histogram.record):
    break_graph(_method)
