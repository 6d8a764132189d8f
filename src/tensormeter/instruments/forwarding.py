"""Serving further metric readers (Prometheus, a periodic exporter): an SDK provider that gets every measurement as well.

A device's value is passed on when the device has stored it in the ring, which is looked at when a reader collects: the SDK
calls callbacks before it reads the aggregations. Nothing here synchronizes with a device. A value whose row has been
delivered and overwritten by then, or will never be finished, is lost to those readers, and counted as the metric
`tensormeter.forward.lost`.
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

_MOST_WAITING: Final = 100_000
"""Device values that wait to be passed on, at most."""

Forward = Callable[[Any, Attributes, Context | None, tuple[memoryview, int] | None], None]
"""Passes a measurement on: amount, attributes, context, and for a device's value where it will be."""


class _Waiting(NamedTuple):
    measure: Callable[..., None]
    attributes: Attributes
    context: Context | None
    words: memoryview
    word: int
    mark: int


class Forwarding:
    """The SDK provider of a provider's further readers."""

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
        """
        Args:
            readers: As for the SDK's provider, and so the others.
            views: See there.
            resource: Finds the attributes of the resource.
            schema_url: Of the resource.
            exemplar_filter: See there.
            shutdown_on_exit: See there.
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
        self._waiting: deque[_Waiting] = deque()
        self._delivering = threading.Lock()
        self._lost = 0
        self._provider.get_meter("tensormeter").create_observable_counter(
            "tensormeter.forward.lost",
            callbacks=[self._deliver],
            unit="{value}",
            description="Device values that other metric readers did not get",
        )

    def synchronous(self, instrument: InstrumentIdentity) -> Forward | None:
        """What passes the measurements of an instrument on; None if the SDK does not take the instrument."""
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
                    kept = dict(attributes) if attributes else None
                    self._wait(_Waiting(measure, kept, context, words, word, words[word - _BEFORE_VALUE]))
                    return
                number = classify(amount)
                if isinstance(number, (DeviceValue, Deferred)):  # and it could not be recorded
                    self._lost += 1
                else:
                    measure(number, attributes, context)
            except Refused:
                return  # as the ring did, which has warned
            except Exception as error:  # of a reader's or a view's code
                warn_once((Forwarding, instrument), "%r is not passed on: %s", instrument.name, error, error=error)

        return forward

    def observable(
        self, instrument: InstrumentIdentity, observe: Callable[[CallbackOptions], Iterable[Observation]]
    ) -> None:
        """Let the readers call an observable instrument's callbacks themselves."""

        def callback(options: CallbackOptions) -> Iterator[Observation]:
            for observation in observe(options):
                try:
                    number = classify(observation.value)
                    attributes = None if observation.attributes is None else {**observation.attributes}
                except Refused:  # as the ring does, which warns
                    continue
                except Exception as error:  # of a value's or a mapping's own code
                    warn_once((Forwarding, instrument), "%r is not passed on: %s", instrument.name, error, error=error)
                    continue
                if isinstance(number, (DeviceValue, Deferred)):  # nobody knows it yet, and it is too late the next time
                    self._lost += 1
                else:
                    yield Observation(number, attributes, getattr(observation, "context", None))

        self._create(instrument, callback)

    def force_flush(self, timeout: float) -> bool:
        """Let the readers collect and export. Blocks for `timeout` seconds at most, if the readers keep to it."""
        try:
            return self._provider.force_flush(timeout * 1000)
        except Exception as error:
            logger.warning("a metric reader could not be flushed: %s", error)
            return False

    def shutdown(self, timeout: float) -> None:
        """End the readers."""
        try:
            self._provider.shutdown(timeout * 1000)
        except Exception as error:
            logger.warning("a metric reader could not be shut down: %s", error)

    def forget_after_fork(self) -> None:
        """In a forked child: what waits is the parent's to pass on."""
        self._waiting.clear()
        self._delivering = threading.Lock()

    def _create(
        self, instrument: InstrumentIdentity, *callbacks: Callable[[CallbackOptions], Iterable[Observation]]
    ) -> Any:
        try:
            return create_sdk_instrument(self._provider, instrument, callbacks)
        except Exception as error:  # such as a unit that the SDK refuses
            warn_once((Forwarding, instrument), "metric readers do not get %r: %s", instrument.name, error)
            return None

    def _wait(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if len(self._waiting) > _MOST_WAITING:
            with LOCK:
                self._waiting.popleft()
                self._lost += 1

    def _deliver(self, options: CallbackOptions) -> Iterable[Observation]:
        """Called by the SDK whenever a reader collects."""
        with self._delivering:
            for _ in range(len(self._waiting)):
                waiting = self._waiting.popleft()
                value = waiting.words[waiting.word]
                if waiting.words[waiting.word - _BEFORE_VALUE] != waiting.mark or value == LOST:
                    self._lost += 1
                elif value == PENDING:
                    self._waiting.append(waiting)
                else:
                    (number,) = struct.unpack("<d", struct.pack("<q", value))
                    waiting.measure(number, waiting.attributes, waiting.context)
        return [Observation(self._lost)] if self._lost else []


def _exemplar_filter() -> "ExemplarFilter":
    """The one that OpenTelemetry's variable names. The SDK itself would raise at an unknown name."""
    from opentelemetry.sdk import metrics

    filters: dict[str, type[Any]] = {
        "trace_based": metrics.TraceBasedExemplarFilter,
        "always_on": metrics.AlwaysOnExemplarFilter,
        "always_off": metrics.AlwaysOffExemplarFilter,
    }
    name = read_word("OTEL_METRICS_EXEMPLAR_FILTER", tuple(filters), "trace_based") or "trace_based"
    return filters[name]()  # type: ignore[no-any-return]


_BEFORE_VALUE: Final = 3
"""Words from a row's mark to its first value."""
