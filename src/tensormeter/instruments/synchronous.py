"""Counters, up-down counters, gauges and histograms.

The instruments are thread-safe, and can be used in signal handlers and after a fork. Recording a Python number with known
attributes takes two dictionary lookups and one write to memory. A device tensor is copied in stream order, without waiting for
the device.

Exemplars are optional in the API. They are not recorded, because looking up the current span and its sampling decision takes
longer than the rest of a measurement. `context` is passed only to the SDK provider for additional metric readers, and
that provider creates exemplars itself.
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
    """Base class of the synchronous instruments. Meters create the instruments."""

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
    """An instrument that sums increments. Negative increments, NaN and infinities are refused and counted, with one warning."""

    def add(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Add a number or a one-element tensor or array. Never raises, and blocks only to start a run."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:  # unknown attributes, not a mapping, or an exception in a value's own code
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
    """An instrument that sums increments and decrements. NaN and infinities are refused and counted, with one warning."""

    def add(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Add a number or a one-element tensor or array. Never raises, and blocks only to start a run."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:  # unknown attributes, not a mapping, or an exception in a value's own code
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
    """An instrument that keeps every value with its time. NaN and infinities are valid values."""

    def set(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record a number or a one-element tensor or array. Never raises, and blocks only to start a run."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:  # unknown attributes, not a mapping, or an exception in a value's own code
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
    """An instrument that counts values by bucket. NaN and infinities are refused and counted, with one warning."""

    def record(self, amount: Any, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record a number or a one-element tensor or array. Never raises, and blocks only to start a run."""
        try:
            stream = self._exact[tuple(attributes.items()) if attributes else ()]
        except Exception:  # unknown attributes, not a mapping, or an exception in a value's own code
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
