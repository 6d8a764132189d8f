"""Meters: they make instruments, and keep them, so that the same instrument asked for twice is the same object."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import CallbackT

from tensormeter.instruments.attributes import plain_text
from tensormeter.instruments.forwarding import Forwarding
from tensormeter.instruments.observing import ObservableCounter, ObservableGauge, ObservableUpDownCounter, Observer
from tensormeter.instruments.registry import LOCK, warn_once
from tensormeter.instruments.streams import Binder, Streams
from tensormeter.instruments.synchronous import Counter, Gauge, Histogram, UpDownCounter
from tensormeter.instruments.views import InstrumentIdentity, ScopeIdentity

__all__ = ["Meter"]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")
"""The specification's "Instrument name syntax"."""

_S = TypeVar("_S", Counter, UpDownCounter, Gauge, Histogram)
_N = TypeVar("_N")
_O = TypeVar("_O", ObservableCounter, ObservableUpDownCounter, ObservableGauge)


class Meter(metrics.Meter):
    """Made by `MeterProvider.get_meter`. Any thread; no method raises for its arguments.

    An instrument whose name breaks the specification's rules is reported and measures nothing.
    """

    def __init__(
        self,
        scope: ScopeIdentity,
        streams: Streams,
        observer: Observer,
        forwarding: Forwarding | None,
    ) -> None:
        super().__init__(scope.name, scope.version or None, scope.schema_url or None)
        self._scope = scope
        self._streams = streams
        self._observer = observer
        self._forwarding = forwarding
        self._names: dict[str, str] = {}
        self._instruments: dict[tuple[str, str, str, str], tuple[InstrumentIdentity, Any]] = {}

    def create_counter(self, name: str, unit: str = "", description: str = "") -> metrics.Counter:
        wanted = self._identity("counter", name, unit, description)
        return self._synchronous(Counter, metrics.NoOpCounter, wanted)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> metrics.UpDownCounter:
        wanted = self._identity("up_down_counter", name, unit, description)
        return self._synchronous(UpDownCounter, metrics.NoOpUpDownCounter, wanted)

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> metrics._Gauge:
        return self._synchronous(Gauge, _no_op_gauge, self._identity("gauge", name, unit, description))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> metrics.Histogram:
        wanted = self._identity("histogram", name, unit, description)
        wanted = replace(wanted, bounds=_bounds(name, explicit_bucket_boundaries_advisory))
        return self._synchronous(Histogram, metrics.NoOpHistogram, wanted)

    def create_observable_counter(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> metrics.ObservableCounter:
        wanted = self._identity("observable_counter", name, unit, description)
        return self._observable(ObservableCounter, metrics.NoOpObservableCounter, wanted, callbacks)

    def create_observable_up_down_counter(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> metrics.ObservableUpDownCounter:
        wanted = self._identity("observable_up_down_counter", name, unit, description)
        return self._observable(ObservableUpDownCounter, metrics.NoOpObservableUpDownCounter, wanted, callbacks)

    def create_observable_gauge(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> metrics.ObservableGauge:
        wanted = self._identity("observable_gauge", name, unit, description)
        return self._observable(ObservableGauge, metrics.NoOpObservableGauge, wanted, callbacks)

    def _identity(self, kind: str, name: Any, unit: Any, description: Any) -> InstrumentIdentity:
        if isinstance(name, str):
            name = plain_text(name)
            first = self._names.setdefault(name.lower(), name)
            if name != first:
                warn_once((Meter, self._scope, name), "the instrument %r is called %r, as it was at first", name, first)
            name = first
        return InstrumentIdentity(kind, name, plain_text(unit), plain_text(description), self._scope)

    def _synchronous(self, made: type[_S], no_op: Callable[..., _N], wanted: InstrumentIdentity) -> _S | _N:
        if not _valid(wanted.name):
            return no_op(str(wanted.name), wanted.unit, wanted.description)
        with LOCK:
            found: _S | None = self._find(wanted)
            if found is not None:
                return found
            forward = self._forwarding.synchronous(wanted) if self._forwarding else None
            binder = Binder(wanted, self._streams)
            instrument = made(wanted.name, wanted.unit, wanted.description, binder=binder, forward=forward)
            self._instruments[_key(wanted)] = (wanted, instrument)
            return instrument

    def _observable(
        self,
        made: type[_O],
        no_op: Callable[..., _N],
        wanted: InstrumentIdentity,
        callbacks: Sequence[CallbackT] | None,
    ) -> _O | _N:
        if not _valid(wanted.name):
            return no_op(str(wanted.name), callbacks, wanted.unit, wanted.description)
        with LOCK:
            found: _O | None = self._find(wanted)
            if found is not None:
                found.add_callbacks(callbacks)
                return found
            binder = Binder(wanted, self._streams)
            instrument = made(wanted.name, callbacks, wanted.unit, wanted.description, binder=binder)
            self._instruments[_key(wanted)] = (wanted, instrument)
            if self._forwarding:
                self._forwarding.observable(wanted, instrument.observe)
            self._observer.add(instrument)
            return instrument

    def _find(self, wanted: InstrumentIdentity) -> Any:
        """The instrument that is meant, if there is one; warns about others of the same name."""
        found = self._instruments.get(_key(wanted))
        if found is None:
            for other, _ in self._instruments.values():
                if other.name == wanted.name and self._streams.views.conflict(other, wanted):
                    warn_once(
                        (Meter, wanted),
                        "the %s %r (unit %r, description %r) of the meter %r has the name of its %s (unit %r, description %r), "
                        "and receivers will see a conflict: use one kind, unit and description, or rename one by a "
                        "View(instrument_name=%r, instrument_type=..., instrument_unit=..., name=...)",
                        wanted.kind, wanted.name, wanted.unit, wanted.description, self._scope.name,
                        other.kind, other.unit, other.description, wanted.name,
                    )  # fmt: skip
            return None
        identity, instrument = found
        if wanted.bounds != identity.bounds:
            warn_once(
                (Meter, wanted),
                "the histogram %r has been created with the bucket boundaries %s already, which stay; %s are ignored",
                wanted.name,
                identity.bounds,
                wanted.bounds,
            )
        return instrument


def _key(identity: InstrumentIdentity) -> tuple[str, str, str, str]:
    """What the specification calls the identifying fields."""
    return identity.kind, identity.name, identity.unit, identity.description


def _no_op_gauge(name: str, unit: str, description: str) -> metrics._Gauge:
    return metrics.NoOpMeter("").create_gauge(name, unit, description)


def _valid(name: Any) -> bool:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return True
    warn_once(
        (Meter, repr(name)),
        "the instrument name %r is not valid, and nothing is recorded: use a letter, then at most 254 letters, digits, '_', "
        "'.', '-' or '/'",
        name,
    )
    return False


def _bounds(name: Any, advised: Any) -> tuple[float, ...] | None:
    if advised is None:
        return None
    try:
        bounds = tuple(map(float, advised))
    except (TypeError, ValueError):
        bounds = (math.nan,)
    if all(map(math.isfinite, bounds)) and all(a < b for a, b in pairwise(bounds)):
        return bounds
    warn_once(
        (Meter, repr(name), "bounds"),
        "the histogram %r is advised bucket boundaries that are not increasing finite numbers, %r; the default ones are used",
        name,
        advised,
    )
    return None
