"""Periodic sampling of one sensor on a separate thread, through an OpenTelemetry MeterProvider."""

import functools
import math
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Final

import numpy as np
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from tensormeter.conventions.semconv import SENSOR
from tensormeter.environment.variables import sdk_enabled
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Gauge, Scope, Sum
from tensormeter.sensors.columns import Columns
from tensormeter.sensors.instrument import Instrument, Observed, Sensor, observe

__all__ = ["SAMPLER_INSTRUMENTS", "SCOPE", "Sampler", "next_due"]

logger: Final = get_logger("tensormeter.agent")

SCOPE: Final = "tensormeter.sensors"
"""Name of the sensors' instrumentation scope."""

_STUCK_AFTER: Final = 30.0
"""Seconds after which a sample in progress is reported as stuck, or three times the interval if that is longer."""

_DURATION: Final = Instrument(
    "tensormeter.sensor.sample.duration",
    "gauge",
    "s",
    "Duration of the sensor's last sample.",
    (SENSOR,),
)
_FAILURES: Final = Instrument(
    "tensormeter.sensor.failures",
    "counter",
    "{failure}",
    "Number of failed readings, whose remaining values are missing. `error.type` is the name of the exception, `stuck` "
    "if the sensor hung, or `overflow` for points that were dropped because too many were waiting.",
    (SENSOR, "error.type"),
)
SAMPLER_INSTRUMENTS: Final = (_DURATION, _FAILURES)


class Sampler:
    """Sampler of one sensor, which runs until it is stopped.

    The sampling thread is a daemon, so a driver that hangs does not keep the process from exiting. One other thread may
    call `report_if_stuck` and `take`. It also counts hangs, because the sampling thread may never continue.

    Attributes:
        columns: Buffer of the points that the sampling thread has collected.
    """

    def __init__(self, name: str, make: Callable[[], Sensor], interval: float) -> None:
        """Start the thread.

        Args:
            name: Name of the sensor.
            make: Function that constructs the sensor on the sampling thread.
            interval: Sampling interval in seconds.
        """
        self.name = name
        self.columns = Columns()
        self.samples = 0
        """Number of samples so far."""
        self.over = False
        """Whether the thread has ended: it was stopped, the sensor failed, or there is nothing to read on this machine."""
        self._make = make
        self._interval = interval
        self._stop = threading.Event()
        self._failures: dict[str, int] = {}
        self._uncollected: set[str] = set()
        self._duration = 0.0
        self._observed: dict[str, list[Observed]] = {}
        self._busy_since: float | None = time.monotonic()
        self._reported = False
        self._stuck = 0
        """Number of samples that took too long. The sampling thread does not use it."""
        self._created = time.time_ns()
        self._thread = threading.Thread(target=self._run, name=f"tensormeter-sensor-{name}", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop sampling. Wait up to `timeout` seconds for a sample in progress."""
        self._stop.set()
        self._thread.join(timeout)

    def report_if_stuck(self) -> None:
        """Log and count a sample that takes too long, once per sample."""
        since = self._busy_since
        if since is None:
            self._reported = False
        elif not self._reported and time.monotonic() - since > max(_STUCK_AFTER, 3 * self._interval):
            self._reported = True
            self._stuck += 1
            logger.warning(
                "sensor %s has not responded for %.0f s; the other sensors continue",
                self.name,
                time.monotonic() - since,
            )

    def take(self) -> list[Gauge | Sum]:
        """Remove and return all collected series. The number of hangs is included even while the sensor hangs."""
        series = self.columns.take()
        if self._stuck:
            series.append(
                Sum(
                    _FAILURES.name,
                    np.array([max(time.time_ns(), self._created + 1)], np.uint64),
                    np.array([self._stuck], np.int64),
                    np.array([self._created], np.uint64),
                    unit=_FAILURES.unit,
                    description=_FAILURES.description,
                    attributes={SENSOR: self.name, "error.type": "stuck"},
                    scope=Scope(SCOPE, version("tensormeter")),
                )
            )
        return series

    def _run(self) -> None:
        try:
            sensor = self._make()
        except Exception as error:  # after any error, the other sensors continue
            logger.warning(
                "sensor %s could not start (%s: %s); its metrics are missing", self.name, type(error).__name__, error
            )
            self.over = True
            return
        try:
            if sensor.instruments:
                self._sample_until_stopped(sensor)
            sensor.close()
        except Exception:
            logger.exception("sensor %s failed; its metrics are missing from now on", self.name)
        finally:
            self._busy_since = None
            self.over = True

    def _sample_until_stopped(self, sensor: Sensor) -> None:
        reader = InMemoryMetricReader()
        with sdk_enabled():
            provider = MeterProvider(
                [reader],
                Resource.get_empty(),
                exemplar_filter=AlwaysOffExemplarFilter(),
                shutdown_on_exit=False,
            )
        meter = provider.get_meter(SCOPE, version("tensormeter"))
        for instrument in (*sensor.instruments, *SAMPLER_INSTRUMENTS):
            self._create(meter, instrument)
        due = time.monotonic()
        while not self._stop.is_set():
            self._busy_since = began = time.monotonic()
            self._observed = observe(sensor, self._failures)
            self._duration = time.monotonic() - began
            self._observe_self()
            self._collect(reader)
            self.samples += 1
            self._busy_since = None
            due = next_due(due, time.monotonic(), self._interval)
            self._stop.wait(max(0.0, due - time.monotonic()))
        provider.shutdown()

    def _collect(self, reader: InMemoryMetricReader) -> None:
        try:
            data = reader.get_metrics_data()
        except Exception as error:  # the SDK raises if the wall clock is set forward by more than the SDK's time limit
            kind = type(error).__name__
            if kind not in self._uncollected:
                self._uncollected.add(kind)
                logger.warning(
                    "sensor %s: could not collect a sample (%s: %s); further failures of this kind are only counted",
                    self.name,
                    kind,
                    error,
                )
            self._failures[kind] = self._failures.get(kind, 0) + 1
            return
        if data is not None:
            self.columns.add(data)

    def _create(self, meter: Meter, instrument: Instrument) -> None:
        create = {
            "gauge": meter.create_observable_gauge,
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
        }[instrument.kind]
        # The callback does not read the sensor, because one reading serves several instruments.
        callback = functools.partial(self._observations, instrument.name)
        create(instrument.name, [callback], instrument.unit, instrument.description)

    def _observations(self, name: str, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for _, value, attributes in self._observed.get(name, ())]

    def _observe_self(self) -> None:
        sensor = {SENSOR: self.name}
        if self.columns.dropped:
            self._failures["overflow"] = self.columns.dropped
        self._observed[_DURATION.name] = [(_DURATION, self._duration, sensor)]
        self._observed[_FAILURES.name] = [
            (_FAILURES, count, {**sensor, "error.type": kind}) for kind, count in self._failures.items()
        ]


def next_due(due: float, now: float, interval: float) -> float:
    """Return the time of the next sample, if the last sample was due at `due`.

    Missed samples are skipped rather than made up for, so that a slow driver is not read continuously.
    """
    return due + interval * max(1, math.ceil((now - due) / interval))
