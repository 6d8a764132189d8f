"""Forwarding of measurements to additional metric readers, such as Prometheus, through an internal SDK meter provider.

A device value is forwarded once the device has stored it in the ring. A callback checks for stored values whenever a reader
collects metrics. The SDK runs callbacks before it reads the aggregations, so these values are included in the collection.
Forwarding never waits for a device. The readers miss a value if its row is overwritten before the check, or if the device
never stores the value. The metric `tensormeter.forward.lost` counts the missed values.
"""

import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.util.types import Attributes

from tensormeter.environment.variables import read_word
from tensormeter.instruments.registry import LOCK, warn_once
from tensormeter.instruments.views import InstrumentIdentity, create_sdk_instrument, measuring_method
from tensormeter.logger import get_logger
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, classify
from tensormeter.ring.format import LOST, PENDING

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import ExemplarFilter
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.metrics.view import View

__all__ = ["Forward", "Forwarding"]

logger: Final = get_logger()

_MAX_PENDING: Final = 100_000
"""Maximum number of device values that are waiting to be forwarded."""

Forward = Callable[[Any, Attributes, Context | None, tuple[memoryview, int] | None], None]
"""Function that forwards a measurement. Its arguments are the amount, the attributes, the context, and the location of a device
value in the ring (None for a host value)."""


class _Pending(NamedTuple):
    """A device value that is waiting to be forwarded, with its location in the ring."""

    measure: Callable[..., None]
    attributes: Attributes
    context: Context | None
    words: memoryview
    word: int
    mark: int


class Forwarding:
    """An internal SDK meter provider that feeds the additional readers attached to a tensormeter provider."""

    def __init__(
        self,
        readers: Sequence["MetricReader"],
        views: Sequence["View"],
        resource: Callable[[], Mapping[str, Any]],
        *,
        schema_url: str = "",
        exemplar_filter: "ExemplarFilter | None" = None,
        shutdown_on_exit: bool = True,
    ) -> None:
        """Create the SDK provider.

        Args:
            readers: SDK metric readers.
            views: SDK views.
            resource: Function that returns the resource attributes.
            schema_url: Schema URL of the resource.
            exemplar_filter: SDK exemplar filter. By default, `OTEL_METRICS_EXEMPLAR_FILTER` selects the filter.
            shutdown_on_exit: Whether to shut down the readers when the interpreter exits.
        """
        from opentelemetry.sdk.metrics import MeterProvider

        from tensormeter.instruments.reader_resource import ReaderResource

        self._provider = MeterProvider(
            readers,
            ReaderResource(resource, schema_url),
            exemplar_filter or _exemplar_filter(),
            shutdown_on_exit,
            views,
        )
        self._pending: deque[_Pending] = deque()
        self._forwarding_lock = threading.Lock()
        self._lost = 0
        self._provider.get_meter("tensormeter").create_observable_counter(
            "tensormeter.forward.lost",
            callbacks=[self._forward_pending],
            unit="{value}",
            description="Device values that were not forwarded to other metric readers",
        )

    def synchronous(self, instrument: InstrumentIdentity) -> Forward | None:
        """Return a function that forwards the measurements of an instrument, or None if the SDK rejects the instrument."""
        measure = measuring_method(instrument, self._create(instrument))
        if measure is None:
            return None

        def forward(
            amount: Any,
            attributes: Attributes,
            context: Context | None,
            place: tuple[memoryview, int] | None,
        ) -> None:
            try:
                if place is not None:
                    words, word = place
                    copied = dict(attributes) if attributes else None
                    self._enqueue(_Pending(measure, copied, context, words, word, words[word - _BEFORE_VALUE]))
                    return
                number = classify(amount)
                if isinstance(number, (DeviceValue, Deferred)):  # the ring could not record it either
                    self._lost += 1
                else:
                    measure(number, attributes, context)
            except Refused:
                return  # the ring also refused it and has warned
            except Exception as error:  # raised by a reader's or a view's code
                _warn(instrument, error)

        return forward

    def observable(
        self, instrument: InstrumentIdentity, observe: Callable[[CallbackOptions], Iterable[Observation]]
    ) -> None:
        """Register an observable instrument with the SDK, so that the readers call its callbacks."""

        def callback(options: CallbackOptions) -> Iterator[Observation]:
            for observation in observe(options):
                try:
                    number = classify(observation.value)
                    attributes = None if observation.attributes is None else {**observation.attributes}
                except Refused:  # the ring also refuses it and warns
                    continue
                except Exception as error:  # raised by the value's or the mapping's own code
                    _warn(instrument, error)
                    continue
                if isinstance(number, (DeviceValue, Deferred)):  # its value is not available in this collection
                    self._lost += 1
                else:
                    yield Observation(number, attributes, getattr(observation, "context", None))

        self._create(instrument, callback)

    def force_flush(self, timeout: float) -> bool:
        """Make all readers export metrics. Blocks for up to `timeout` seconds, or longer if a reader ignores the timeout."""
        try:
            return self._provider.force_flush(timeout * 1000)
        except Exception as error:
            logger.warning("cannot flush a metric reader: %s", error)
            return False

    def shutdown(self, timeout: float) -> None:
        """Shut down the readers. Blocks for up to `timeout` seconds, or longer if a reader ignores the timeout."""
        try:
            self._provider.shutdown(timeout * 1000)
        except Exception as error:
            logger.warning("cannot shut down a metric reader: %s", error)

    def forget_after_fork(self) -> None:
        """Discard the pending values in a forked child process. The parent process forwards them."""
        self._pending.clear()
        self._forwarding_lock = threading.Lock()

    def _create(
        self, instrument: InstrumentIdentity, *callbacks: Callable[[CallbackOptions], Iterable[Observation]]
    ) -> Any:
        try:
            return create_sdk_instrument(self._provider, instrument, callbacks)
        except Exception as error:  # for example, a unit that the SDK refuses
            warn_once((Forwarding, instrument), "cannot forward %r to metric readers: %s", instrument.name, error)
            return None

    def _enqueue(self, pending: _Pending) -> None:
        self._pending.append(pending)
        if len(self._pending) > _MAX_PENDING:
            with LOCK:
                self._pending.popleft()
                self._lost += 1

    def _forward_pending(self, options: CallbackOptions) -> Iterable[Observation]:
        """Forward the device values that have become available. The SDK calls this method whenever a reader collects metrics."""
        with self._forwarding_lock:
            for _ in range(len(self._pending)):
                pending = self._pending.popleft()
                value = pending.words[pending.word]
                if pending.words[pending.word - _BEFORE_VALUE] != pending.mark or value == LOST:
                    self._lost += 1
                elif value == PENDING:
                    self._pending.append(pending)
                else:
                    (number,) = struct.unpack("<d", struct.pack("<q", value))
                    pending.measure(number, pending.attributes, pending.context)
        return [Observation(self._lost)] if self._lost else []


def _exemplar_filter() -> "ExemplarFilter":
    """Return the filter that `OTEL_METRICS_EXEMPLAR_FILTER` selects. Unlike the SDK, do not raise an error for an unknown name."""
    from opentelemetry.sdk import metrics

    filters: dict[str, type[Any]] = {
        "trace_based": metrics.TraceBasedExemplarFilter,
        "always_on": metrics.AlwaysOnExemplarFilter,
        "always_off": metrics.AlwaysOffExemplarFilter,
    }
    name = read_word("OTEL_METRICS_EXEMPLAR_FILTER", tuple(filters), "trace_based") or "trace_based"
    return filters[name]()  # type: ignore[no-any-return]


_BEFORE_VALUE: Final = 3
"""Number of words between the start of a row and its first value."""


def _warn(instrument: InstrumentIdentity, error: Exception) -> None:
    warn_once(
        (Forwarding, instrument),
        "could not forward %r to metric readers: %s",
        instrument.name,
        error,
        error=error,
    )
