"""The meter provider: what a program installs once, and the run that its measurements go to."""

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
from tensormeter.session.run import Run, before_finish, latest_run
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
"""Seconds. What `threading` can wait is bounded."""
_LAST_OBSERVATION: Final = 5.0
"""Seconds that the end of a run waits for the callbacks."""


class MeterProvider(metrics.MeterProvider):
    """OpenTelemetry's meter provider, whose instruments record into a tensormeter run.

    Its instruments take Python and NumPy numbers, and tensors and arrays with one element; a tensor on a device is copied in
    stream order, without waiting for it. Gauges keep every value at its own time; counters and histograms are aggregated by
    the agent. Exemplars are not recorded. Every method can be called from any thread; none raises once the provider is made.

    Without `run` the measurements go to the run that was begun last; if there is none, the first measurement begins one with
    the settings of the environment, which `shutdown` (or the end of the program) finishes. When a run has ended, they go to
    the next.

    A forked child that measures takes part in the run as one that logs does: see Settings' `after_fork`.
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
        """
        Args:
            metric_readers: Of the SDK, such as Prometheus's; they get every measurement as well, from an SDK provider in
                this process, at the SDK's cost.
            resource: Its attributes are added to the run's; they cannot change what identifies the run (`service.name` is
                the project). `metric_readers` get the run's resource with these attributes over it.
            exemplar_filter: For `metric_readers`; the run has no exemplars.
            shutdown_on_exit: Whether `metric_readers` are shut down when the interpreter exits. The run is finished then in
                any case.
            views: Of the SDK; what they make of an instrument is found out when it first measures.
            run: To record into.

        Raises:
            UsageError: `run` is no run.
            Exception: Whatever the SDK says of `metric_readers` that it refuses.
        """
        if run is not None and not isinstance(run, Run):
            raise UsageError(f"MeterProvider: expected a tensormeter.Run as run, got {type(run).__name__}")
        self._given = run
        self._run: Run | None = None
        self._began: Run | None = None
        self._resource = dict(clean_attributes(resource.attributes)) if resource is not None else {}
        self._ending = False
        self._ended = False
        self._meters: dict[str, Meter] = {}
        self._streams = Streams(Views(tuple(views), self._exponential), self._recorder, self._cardinality_limit)
        self._observer = Observer(self._observe_interval)
        self._forwarding: Forwarding | None = None
        if metric_readers:
            given = dict(resource.attributes) if resource is not None else {}
            schema_url = resource.schema_url if resource is not None else ""
            self._forwarding = Forwarding(
                metric_readers,
                views,
                lambda: merge_resources(self._described(), given),
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
        """The meter of an instrumentation scope; the same object for the same arguments."""
        if self._ended:
            warn_once(
                (MeterProvider, "meter", id(self)), "get_meter() after shutdown(): its instruments record nothing"
            )
            return metrics.NoOpMeter(name or "", version, schema_url)
        if not isinstance(name, str) or not name:
            warn_once((MeterProvider, repr(name)), "get_meter: expected a name that is a non-empty str, got %r", name)
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
        """Observe everything once, and deliver what was measured so far now (in an offline run, write it to disk).

        Does not wait for `schedule_delay`; other threads measure on.

        Args:
            timeout_millis: Milliseconds to wait for all of that, at most. With 0 or less the flush is only requested.

        Returns:
            Whether it is delivered, within the timeout. False as well after `shutdown`, and when there is nothing that
            delivers.
        """
        if self._ended:
            warn_once((MeterProvider, "flush", id(self)), "force_flush() after shutdown() does nothing")
            return False
        deadline = _Deadline(timeout_millis, 10_000)
        process = self._run._joined() if self._run is not None else None
        if process is not None:
            process.request_flush()  # so that a callback that hangs does not hold up what is there
        observed = self._observer.flush(deadline.left)
        process = self._run._joined() if self._run is not None else None  # observing may have begun a run
        request = process.request_flush() if process is not None else None
        forwarded = self._forwarding is None or self._forwarding.force_flush(deadline.left)
        delivered = process is None or request is None or process.wait_for_flush(request, deadline.left)
        return observed and delivered and forwarded

    def shutdown(self, timeout_millis: float = 30_000) -> bool:
        """Observe everything a last time, deliver, and end: later measurements are ignored, with one warning.

        A run that the provider has begun is finished; a run of the program's own goes on.

        Args:
            timeout_millis: Milliseconds to wait for all of that, at most.

        Returns:
            Whether everything is delivered. If not, the agent goes on trying.
        """
        with LOCK:
            if self._ending:
                warn_once((MeterProvider, "shutdown", id(self)), "shutdown() can be called once only")
                return False
            if self._observer.is_current_thread:
                warn_once((MeterProvider, "callback", id(self)), "shutdown() in a callback is ignored")
                return False
            self._ending = True
        deadline = _Deadline(timeout_millis, 30_000)
        observed = self._observe_last(min(deadline.left, _LAST_OBSERVATION))
        self._ended = True
        self._observer.stop(deadline.left if observed else 0.0)
        self._streams.reset()
        process = self._run._joined() if self._run is not None else None
        request = process.request_flush() if process is not None else None
        if self._forwarding is not None:  # first, because the agent delivers meanwhile, and after us
            self._forwarding.shutdown(deadline.left)
        delivered = None
        if process is not None and request is not None and process.parent is not None:
            # A child's `finish` lets its ring go and waits for nothing, so what is delivered has to be seen before.
            delivered = process.wait_for_flush(request, deadline.left)
        if self._began is not None:
            self._began.finish(timeout=deadline.left)
        if delivered is None:
            delivered = process is None or request is None or process.wait_for_flush(request, deadline.left)
        return observed and delivered

    def _described(self) -> Mapping[str, Any]:
        """The resource of the run, or of the one that will begin."""
        run = self._run or self._given or latest_run()
        process = run._process if run is not None else None
        if process is not None:
            return process.resource
        settings = self._settings()
        return {} if settings is None else {SERVICE_NAME: settings.project}

    def _recorder(self) -> Recorder | None:
        """Return the recorder of this process. Called for a stream's first measurement, and whenever a fast path does not fit."""
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
            if self._given is not None:
                run = self._given if not self._given._finished else None
            else:
                run = latest_run() or self._begin()
            if run is None:
                warn_once((MeterProvider, "over", id(self)), "measurements after the run was finished are not recorded")
                return None
            if run is not self._run:
                self._run = run
                run._describe(self._resource)
            return run

    def _begin(self) -> Run | None:
        if self._run is not None:
            return None  # one run has ended, and the program has not begun another
        try:
            self._began = init()
        except (TensormeterError, OSError) as error:
            warn_once(
                (MeterProvider, "begin", id(self)), "no run can be begun, measurements are not recorded: %s", error
            )
        return self._began

    def _before_finish(self, run: Run) -> None:
        """Observe a last time what goes to a run that is about to finish."""
        goes_to = self._run or self._given or latest_run()
        if run is goes_to and run._process is not None and run._process.is_this and not self._ended:
            self._observe_last(_LAST_OBSERVATION)

    def _observe_last(self, timeout: float) -> bool:
        """Observe everything a last time, for `timeout` seconds at most. Returns whether it is done."""
        observed = self._observer.flush(timeout)
        if not observed:
            warn_once(
                (MeterProvider, "late", id(self)),
                "a callback of an observable instrument has not returned within %g s; what it would observe last is not recorded",
                timeout,
            )
        return observed

    def _cardinality_limit(self) -> int:
        run = self._current_run()  # before the first measurement is recorded, so that its settings hold for it
        return run.settings.cardinality_limit if run is not None else _CARDINALITY_LIMIT

    def _exponential(self) -> bool:
        settings = self._settings()
        return settings is not None and settings.histogram_aggregation == "base2_exponential_bucket_histogram"

    def _observe_interval(self) -> float:
        settings = self._settings()
        return _OBSERVE_INTERVAL if settings is None else settings.observe_interval

    def _settings(self) -> Settings | None:
        """The run's, or if there is none yet, those that it will begin with."""
        run = self._run or self._given or latest_run()
        if run is not None:
            return run.settings
        try:
            return Settings()
        except TensormeterError:  # beginning the run will say so
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
    """Make a `MeterProvider` and install it as OpenTelemetry's.

    What was instrumented with `opentelemetry.metrics` is recorded from then on, also by instruments made before. To install
    one without touching the program, set `OTEL_PYTHON_METER_PROVIDER=tensormeter`.
    The global provider can be set once in a process: if there is one already, OpenTelemetry warns and keeps it.

    Args:
        metric_readers: As for `MeterProvider`.
        resource: As for `MeterProvider`.
        exemplar_filter: As for `MeterProvider`.
        shutdown_on_exit: As for `MeterProvider`.
        views: As for `MeterProvider`.
        run: As for `MeterProvider`.
    """
    provider = MeterProvider(metric_readers, resource, exemplar_filter, shutdown_on_exit, views, run=run)
    metrics.set_meter_provider(provider)
    return provider


class _Deadline:
    """What is left of a timeout that several share, from now on."""

    def __init__(self, timeout_millis: float, usual: float) -> None:
        """
        Args:
            timeout_millis: Any number. What is no number is warned about.
            usual: Milliseconds, in place of what is no number.
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
                usual,
            )
            seconds = usual / 1000
        self._end = now + min(seconds, _LONGEST_TIMEOUT)

    @property
    def left(self) -> float:
        """Seconds, not negative."""
        return max(self._end - time.monotonic(), 0.0)


_providers: "weakref.WeakSet[MeterProvider]" = weakref.WeakSet()


def _after_fork() -> None:
    for provider in list(_providers):
        provider._forget_after_fork()


def _before_finish(run: Run) -> None:
    for provider in list(_providers):
        provider._before_finish(run)


os.register_at_fork(after_in_child=_after_fork)
before_finish.append(_before_finish)
