"""The meter provider, which a program installs once, and the choice of the run that receives its measurements."""

import math
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics
from opentelemetry.util.types import Attributes

from tensormeter.api import init
from tensormeter.conventions.semconv import SERVICE_NAME
from tensormeter.errors import TensormeterError, UsageError
from tensormeter.instruments.attributes import clean_attributes, plain_text
from tensormeter.instruments.forwarding import Forwarding
from tensormeter.instruments.meter import Meter
from tensormeter.instruments.observing import Observer
from tensormeter.instruments.reader_resource import merge_resources
from tensormeter.instruments.registry import LOCK, warn_once
from tensormeter.instruments.streams import Streams
from tensormeter.instruments.views import ScopeIdentity, Views
from tensormeter.record.recorder import Recorder
from tensormeter.session.open_runs import current_run
from tensormeter.session.run import Run, before_finish
from tensormeter.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import ExemplarFilter
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.metrics.view import View
    from opentelemetry.sdk.resources import Resource

__all__ = ["MeterProvider", "configure"]

_CARDINALITY_LIMIT: Final = 2000
_OBSERVE_INTERVAL: Final = 10.0
_LONGEST_TIMEOUT: Final = 7 * 86400.0
"""Maximum timeout in seconds. The `threading` module does not support longer waits."""
_LAST_OBSERVATION: Final = 5.0
"""Maximum time in seconds to wait for callbacks at the end of a run."""


class MeterProvider(metrics.MeterProvider):
    """An OpenTelemetry meter provider whose instruments record into a tensormeter run.

    Instruments accept Python numbers, NumPy numbers, and one-element tensors and arrays. A device tensor is copied in stream
    order, without waiting for the device. A gauge keeps every value with its time. The agent aggregates counters and
    histograms. Exemplars are not recorded. All methods are thread-safe, and only the constructor raises exceptions.

    Without `run`, measurements go to the most recently started run. If no run has started, the first measurement starts one
    with the settings from the environment. `shutdown` or the end of the program then finishes this run. After a run has ended,
    measurements go to the next run that the program starts.

    A forked child process joins the run on its first measurement or its first call of `Run.log`; see the `after_fork` setting.
    """

    def __init__(
        self,
        metric_readers: Sequence["MetricReader"] = (),
        resource: "Resource | None" = None,
        exemplar_filter: "ExemplarFilter | None" = None,
        shutdown_on_exit: bool = True,
        views: Sequence["View"] = (),
        *,
        run: Run | None = None,
    ) -> None:
        """Create a provider without starting a run. To also install the provider, use `configure`.

        Args:
            metric_readers: Additional SDK readers, such as the Prometheus reader. An SDK meter provider in this process passes
                each measurement to them, at the SDK's usual cost.
            resource: Resource whose attributes are added to the run's attributes. They cannot change the run's identity: its
                `service.name` is always the project. `metric_readers` receive these attributes instead of the run's attributes
                with the same names.
            exemplar_filter: Exemplar filter for `metric_readers`. The run itself records no exemplars.
            shutdown_on_exit: Whether to shut down `metric_readers` when the interpreter exits. The run is finished in any case.
            views: SDK views. They are applied when an attribute set is first measured.
            run: Run to record into. By default, the most recently started run.

        Raises:
            UsageError: `run` is not a `Run`.
            Exception: The SDK rejected `metric_readers`.
        """
        if run is not None and not isinstance(run, Run):
            raise UsageError(f"MeterProvider: expected a tensormeter.Run as run, got {type(run).__name__}")
        self._fixed_run = run
        self._run: Run | None = None
        self._own_run: Run | None = None
        self._resource = dict(clean_attributes(resource.attributes)) if resource is not None else {}
        self._ending = False
        self._ended = False
        self._meters: dict[str, Meter] = {}
        self._streams = Streams(Views(tuple(views), self._exponential), self._recorder, self._cardinality_limit)
        self._observer = Observer(self._observe_interval)
        self._forwarding: Forwarding | None = None
        if metric_readers:
            attributes = dict(resource.attributes) if resource is not None else {}
            schema_url = resource.schema_url if resource is not None else ""
            self._forwarding = Forwarding(
                metric_readers,
                views,
                lambda: merge_resources(self._run_resource(), attributes),
                schema_url=schema_url,
                exemplar_filter=exemplar_filter,
                shutdown_on_exit=shutdown_on_exit,
            )
        _providers.add(self)

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> metrics.Meter:
        """Return the meter for an instrumentation scope. Calls with the same arguments return the same object."""
        if self._ended:
            warn_once(
                (MeterProvider, "meter", id(self)), "get_meter() was called after shutdown(); the meter records nothing"
            )
            return metrics.NoOpMeter(name or "", version, schema_url)
        if not isinstance(name, str) or not name:
            warn_once((MeterProvider, repr(name)), "get_meter: expected a non-empty str as the name, got %r", name)
        scope = ScopeIdentity(
            plain_text(name),
            plain_text(version),
            plain_text(schema_url),
            clean_attributes(attributes),
        )
        with LOCK:
            key = repr(scope)  # True and 1 are different attributes
            if key not in self._meters:
                self._meters[key] = Meter(scope, self._streams, self._observer, self._forwarding)
            return self._meters[key]

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Call the observable instruments' callbacks once, and deliver all measurements now.

        In an offline run, the agent writes the measurements to disk instead. The flush does not wait for `schedule_delay`.
        Other threads can record measurements in the meantime.

        Args:
            timeout_millis: Maximum time to wait in milliseconds. With 0 or less, the call requests the flush without waiting.

        Returns:
            Whether everything was delivered within the timeout. False after `shutdown`, or if the run has no agent.
        """
        if self._ended:
            warn_once((MeterProvider, "flush", id(self)), "force_flush() was called after shutdown(); it has no effect")
            return False
        deadline = _Deadline(timeout_millis, 10_000)
        process = self._run._joined() if self._run is not None else None
        if process is not None:
            process.request_flush()  # before the callbacks run, because they may hang
        observed = self._observer.flush(deadline.left)
        process = self._run._joined() if self._run is not None else None  # a callback may have started a run
        request = process.request_flush() if process is not None else None
        forwarded = self._forwarding is None or self._forwarding.force_flush(deadline.left)
        delivered = process is None or request is None or process.wait_for_flush(request, deadline.left)
        return observed and delivered and forwarded

    def shutdown(self, timeout_millis: float = 30_000) -> bool:
        """Call the observable instruments' callbacks one last time, deliver all measurements, and shut down the provider.

        If the provider started the run, `shutdown` also finishes it. Otherwise, the run continues. Later measurements are
        ignored, with one warning.

        Args:
            timeout_millis: Maximum time to wait in milliseconds.

        Returns:
            Whether everything was delivered in time. If not, the agent continues to deliver the rest.
        """
        with LOCK:
            if self._ending:
                warn_once((MeterProvider, "shutdown", id(self)), "shutdown() can be called only once")
                return False
            if self._observer.is_current_thread:
                warn_once(
                    (MeterProvider, "callback", id(self)),
                    "ignored shutdown() inside a callback of an observable instrument; call it elsewhere",
                )
                return False
            self._ending = True
        deadline = _Deadline(timeout_millis, 30_000)
        observed = self._observe_last(min(deadline.left, _LAST_OBSERVATION))
        self._ended = True
        self._observer.stop(deadline.left if observed else 0.0)
        self._streams.reset()
        process = self._run._joined() if self._run is not None else None
        request = process.request_flush() if process is not None else None
        if self._forwarding is not None:  # before waiting, because the agent delivers in the meantime
            self._forwarding.shutdown(deadline.left)
        delivered = None
        if process is not None and request is not None and process.parent is not None:
            # In a forked child, `finish` releases the ring without waiting, so wait for delivery first.
            delivered = process.wait_for_flush(request, deadline.left)
        if self._own_run is not None:
            self._own_run.finish(timeout=deadline.left)
        if delivered is None:
            delivered = process is None or request is None or process.wait_for_flush(request, deadline.left)
        return observed and delivered

    def _run_resource(self) -> Mapping[str, Any]:
        """Return the resource of the current run, or the resource that a new run would have."""
        run = self._run or self._fixed_run or current_run()
        process = run._process if run is not None else None
        if process is not None:
            return process.resource
        settings = self._settings()
        return {} if settings is None else {SERVICE_NAME: settings.project}

    def _recorder(self) -> Recorder | None:
        """Return this process's recorder, or None if measurements are not recorded. Streams call it outside their fast path."""
        run = self._current_run()
        process = run._here() if run is not None else None
        if process is None:
            return None
        self._observer.ensure_thread()
        return process.recorder

    def _current_run(self) -> Run | None:
        run = self._run
        if run is not None and not run._finished and not self._ended:
            return run
        with LOCK:
            if self._ended:
                warn_once((MeterProvider, "measure", id(self)), "measurements after shutdown() are not recorded")
                return None
            if self._fixed_run is not None:
                run = self._fixed_run if not self._fixed_run._finished else None
            else:
                run = current_run() or self._begin()
            if run is None:
                warn_once((MeterProvider, "over", id(self)), "measurements after the run was finished are not recorded")
                return None
            if run is not self._run:
                self._run = run
                run._describe(self._resource)
            return run

    def _begin(self) -> Run | None:
        if self._run is not None:
            return None  # a run has ended, and the program has not started another
        try:
            self._own_run = init()
        except (TensormeterError, OSError) as error:
            warn_once(
                (MeterProvider, "begin", id(self)),
                "measurements are not recorded, because no run could be started: %s",
                error,
            )
        return self._own_run

    def _before_finish(self, run: Run) -> None:
        """Call the callbacks one last time if the run that is about to finish receives their observations."""
        target = self._run or self._fixed_run or current_run()
        if run is target and run._process is not None and run._process.is_this and not self._ended:
            self._observe_last(_LAST_OBSERVATION)

    def _observe_last(self, timeout: float) -> bool:
        """Call all callbacks one last time. Return whether they returned within `timeout` seconds."""
        observed = self._observer.flush(timeout)
        if not observed:
            warn_once(
                (MeterProvider, "late", id(self)),
                "a callback of an observable instrument did not return within %g s; its last observations are not "
                "recorded",
                timeout,
            )
        return observed

    def _cardinality_limit(self) -> int:
        run = self._current_run()  # starts a run if there is none, because its settings apply to the first measurement
        return run.settings.cardinality_limit if run is not None else _CARDINALITY_LIMIT

    def _exponential(self) -> bool:
        settings = self._settings()
        return settings is not None and settings.histogram_aggregation == "base2_exponential_bucket_histogram"

    def _observe_interval(self) -> float:
        settings = self._settings()
        return _OBSERVE_INTERVAL if settings is None else settings.observe_interval

    def _settings(self) -> Settings | None:
        """Return the settings of the current run, or the settings that a new run would have."""
        run = self._run or self._fixed_run or current_run()
        if run is not None:
            return run.settings
        try:
            return Settings()
        except TensormeterError:  # starting the run reports this error
            return None

    def _forget_after_fork(self) -> None:
        self._observer.forget_after_fork()
        if self._forwarding is not None:
            self._forwarding.forget_after_fork()


def configure(
    *,
    metric_readers: Sequence["MetricReader"] = (),
    resource: "Resource | None" = None,
    exemplar_filter: "ExemplarFilter | None" = None,
    shutdown_on_exit: bool = True,
    views: Sequence["View"] = (),
    run: Run | None = None,
) -> MeterProvider:
    """Create a `MeterProvider` and install it as OpenTelemetry's global provider.

    Afterwards, all `opentelemetry.metrics` instruments record into the run, including instruments that were created earlier. To
    install a provider without changing the program, set `OTEL_PYTHON_METER_PROVIDER=tensormeter`. A process can set its global
    provider only once. If the process already has a global provider, OpenTelemetry keeps it and logs a warning.

    Args:
        metric_readers: See `MeterProvider`.
        resource: See `MeterProvider`.
        exemplar_filter: See `MeterProvider`.
        shutdown_on_exit: See `MeterProvider`.
        views: See `MeterProvider`.
        run: See `MeterProvider`.

    Raises:
        UsageError: `run` is not a `Run`.
        Exception: The SDK rejected `metric_readers`.
    """
    provider = MeterProvider(metric_readers, resource, exemplar_filter, shutdown_on_exit, views, run=run)
    metrics.set_meter_provider(provider)
    return provider


class _Deadline:
    """A deadline that several waits share."""

    def __init__(self, timeout_millis: float, default: float) -> None:
        """Start the timeout.

        Args:
            timeout_millis: Timeout in milliseconds. If this is not a number, a warning is logged and `default` is used.
            default: Default timeout in milliseconds.
        """
        now = time.monotonic()
        try:
            seconds = float(timeout_millis) / 1000
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if math.isnan(seconds):
            warn_once(
                (_Deadline, repr(timeout_millis)),
                "timeout_millis: expected a number of milliseconds, got %r; using %g",
                timeout_millis,
                default,
            )
            seconds = default / 1000
        self._end = now + min(seconds, _LONGEST_TIMEOUT)

    @property
    def left(self) -> float:
        """Remaining time in seconds, or 0 after the deadline."""
        return max(self._end - time.monotonic(), 0.0)


_providers: "weakref.WeakSet[MeterProvider]" = weakref.WeakSet()


def _after_fork() -> None:
    for provider in list(_providers):
        provider._forget_after_fork()


def _before_finish(run: Run, state: str) -> None:
    for provider in list(_providers):
        provider._before_finish(run)


os.register_at_fork(after_in_child=_after_fork)
before_finish.append(_before_finish)
