"""Meters, which create instruments. Requests for the same instrument return the same object."""

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
"""Syntax of instrument names, as defined by the OpenTelemetry specification."""

_S = TypeVar("_S", Counter, UpDownCounter, Gauge, Histogram)
_N = TypeVar("_N")
_O = TypeVar("_O", ObservableCounter, ObservableUpDownCounter, ObservableGauge)


class Meter(metrics.Meter):
    """A meter for one instrumentation scope, created by `MeterProvider.get_meter`.

    All methods are thread-safe, and invalid arguments never raise an exception. An instrument with an invalid name causes one
    warning and records nothing.
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
        identity = self._identity("counter", name, unit, description)
        return self._synchronous(Counter, metrics.NoOpCounter, identity)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> metrics.UpDownCounter:
        identity = self._identity("up_down_counter", name, unit, description)
        return self._synchronous(UpDownCounter, metrics.NoOpUpDownCounter, identity)

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
        identity = self._identity("histogram", name, unit, description)
        identity = replace(identity, bounds=_bounds(name, explicit_bucket_boundaries_advisory))
        return self._synchronous(Histogram, metrics.NoOpHistogram, identity)

    def create_observable_counter(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> metrics.ObservableCounter:
        identity = self._identity("observable_counter", name, unit, description)
        return self._observable(ObservableCounter, metrics.NoOpObservableCounter, identity, callbacks)

    def create_observable_up_down_counter(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> metrics.ObservableUpDownCounter:
        identity = self._identity("observable_up_down_counter", name, unit, description)
        return self._observable(ObservableUpDownCounter, metrics.NoOpObservableUpDownCounter, identity, callbacks)

    def create_observable_gauge(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
    ) -> metrics.ObservableGauge:
        identity = self._identity("observable_gauge", name, unit, description)
        return self._observable(ObservableGauge, metrics.NoOpObservableGauge, identity, callbacks)

    def _identity(self, kind: str, name: Any, unit: Any, description: Any) -> InstrumentIdentity:
        if isinstance(name, str):
            name = plain_text(name)
            first = self._names.setdefault(name.lower(), name)
            if name != first:
                warn_once(
                    (Meter, self._scope, name),
                    "the instrument %r is recorded as %r, the spelling used first",
                    name,
                    first,
                )
            name = first
        return InstrumentIdentity(kind, name, plain_text(unit), plain_text(description), self._scope)

    def _synchronous(
        self, instrument_type: type[_S], no_op: Callable[..., _N], identity: InstrumentIdentity
    ) -> _S | _N:
        if not _valid(identity.name):
            return no_op(str(identity.name), identity.unit, identity.description)
        with LOCK:
            existing: _S | None = self._find(identity)
            if existing is not None:
                return existing
            forward = self._forwarding.synchronous(identity) if self._forwarding else None
            binder = Binder(identity, self._streams)
            instrument = instrument_type(
                identity.name, identity.unit, identity.description, binder=binder, forward=forward
            )
            self._instruments[_key(identity)] = (identity, instrument)
            return instrument

    def _observable(
        self,
        instrument_type: type[_O],
        no_op: Callable[..., _N],
        identity: InstrumentIdentity,
        callbacks: Sequence[CallbackT] | None,
    ) -> _O | _N:
        if not _valid(identity.name):
            return no_op(str(identity.name), callbacks, identity.unit, identity.description)
        with LOCK:
            existing: _O | None = self._find(identity)
            if existing is not None:
                existing.add_callbacks(callbacks)
                return existing
            binder = Binder(identity, self._streams)
            instrument = instrument_type(identity.name, callbacks, identity.unit, identity.description, binder=binder)
            self._instruments[_key(identity)] = (identity, instrument)
            if self._forwarding:
                self._forwarding.observable(identity, instrument.observe)
            self._observer.add(instrument)
            return instrument

    def _find(self, identity: InstrumentIdentity) -> Any:
        """Return the instrument if it already exists, otherwise None. Warn about different instruments with the same name."""
        entry = self._instruments.get(_key(identity))
        if entry is None:
            for other, _ in self._instruments.values():
                if other.name == identity.name and self._streams.views.conflict(other, identity):
                    warn_once(
                        (Meter, identity),
                        "the %s %r (unit %r, description %r) of the meter %r has the same name as its %s (unit %r, "
                        "description %r), which is a conflict for receivers; use the same kind, unit and "
                        "description, or rename one with "
                        "View(instrument_name=%r, instrument_type=..., instrument_unit=..., name=...)",
                        identity.kind, identity.name, identity.unit, identity.description, self._scope.name,
                        other.kind, other.unit, other.description, identity.name,
                    )  # fmt: skip
            return None
        existing, instrument = entry
        if identity.bounds != existing.bounds:
            warn_once(
                (Meter, identity),
                "the histogram %r already has the bucket boundaries %s; ignoring the boundaries %s",
                identity.name,
                existing.bounds,
                identity.bounds,
            )
        return instrument


def _key(identity: InstrumentIdentity) -> tuple[str, str, str, str]:
    """Return the fields that identify an instrument, as defined by the OpenTelemetry specification."""
    return identity.kind, identity.name, identity.unit, identity.description


def _no_op_gauge(name: str, unit: str, description: str) -> metrics._Gauge:
    return metrics.NoOpMeter("").create_gauge(name, unit, description)


def _valid(name: Any) -> bool:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return True
    warn_once(
        (Meter, repr(name)),
        "the instrument name %r is invalid, so nothing will be recorded; use a letter, then at most 254 letters, "
        "digits, '_', "
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
        "the histogram %r has invalid advisory bucket boundaries %r; pass increasing finite numbers (using the "
        "default boundaries)",
        name,
        advised,
    )
    return None
