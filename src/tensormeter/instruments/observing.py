"""Observable instruments, and the thread that calls their callbacks."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, CallbackT, Observation

from tensormeter.instruments.registry import LOCK, warn_once
from tensormeter.instruments.streams import Binder, Bound, StreamGroup
from tensormeter.record.measurement import StreamWriter
from tensormeter.record.values import Deferred, DeviceValue, Refused, classify

__all__ = ["ObservableCounter", "ObservableGauge", "ObservableUpDownCounter", "Observer"]

logger: Final = logging.getLogger("tensormeter")


class _Callback:
    """One of the user's callbacks: a function, or a generator that is sent the options."""

    def __init__(self, callback: CallbackT) -> None:
        self._callback = callback
        self._generator_begun = False
        self.lock = threading.Lock()  # a generator cannot be entered twice; metric readers call on threads of their own

    def __call__(self, options: CallbackOptions) -> list[Observation]:
        with self.lock:
            if not isinstance(self._callback, Generator):
                return list(self._callback(options))
            try:
                if not self._generator_begun:
                    self._generator_begun = True
                    next(self._callback)
                return list(self._callback.send(options))
            except StopIteration:
                return []


class _Observable:
    """What the three have. Made by a meter."""

    def __init__(
        self,
        name: str,
        callbacks: Sequence[CallbackT] | None = None,
        unit: str = "",
        description: str = "",
        *,
        binder: Binder,
    ) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self._binder = binder
        self.callbacks: list[_Callback] = []
        self.add_callbacks(callbacks)

    def add_callbacks(self, callbacks: Sequence[CallbackT] | None) -> None:
        """More to call, from those who asked for the same instrument."""
        self.callbacks += map(_Callback, callbacks or ())

    def observe(self, options: CallbackOptions) -> Iterator[Observation]:
        """Call the callbacks. What they raise is warned about once each, and does not stop the others."""
        for callback in list(self.callbacks):
            try:
                yield from callback(options)
            except Exception as error:
                warn_once(callback, "a callback of %r failed: %s", self.name, error, error=error)

    def measure(self, options: CallbackOptions) -> None:
        """Call the callbacks and record what they observe.

        Where a view leaves attributes out, observations of one round that become the same stream are added up if they are
        totals; of a gauge the last holds.
        """
        numbers: dict[StreamWriter, float] = {}
        for observation in self.observe(options):
            bound = self._binder.bind(observation.attributes)
            try:
                number = classify(observation.value)
            except Refused:
                bound.record(observation.value)  # warns, and counts
                continue
            if isinstance(number, (DeviceValue, Deferred)):
                bound.record(observation.value)
                continue
            for stream in _streams(bound):
                total = stream in numbers and stream.stream.kind != "gauge"
                numbers[stream] = numbers[stream] + number if total else number
        for stream, number in numbers.items():
            stream.record(number)


def _streams(bound: Bound) -> tuple[StreamWriter, ...]:
    return bound.streams if isinstance(bound, StreamGroup) else (bound,)


class ObservableCounter(_Observable, metrics.ObservableCounter):
    """Totals that never go down, kept by somebody else."""


class ObservableUpDownCounter(_Observable, metrics.ObservableUpDownCounter):
    """Totals kept by somebody else."""


class ObservableGauge(_Observable, metrics.ObservableGauge):
    """Values that can be looked at."""


class Observer:
    """The thread `tensormeter-observer`, which calls all callbacks of a provider, one after the other.

    It begins with the first observable instrument, and in a forked child with the first measurement there.
    """

    def __init__(self, interval: Callable[[], float]) -> None:
        """
        Args:
            interval: Tells the seconds between two rounds.
        """
        self._interval = interval
        self._instruments: list[_Observable] = []
        self._wake = threading.Event()
        self._wanted: deque[threading.Event] = deque()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def is_current_thread(self) -> bool:
        """Whether a callback is asking."""
        return self._thread is threading.current_thread()

    def add(self, instrument: _Observable) -> None:
        """Call this instrument's callbacks too from now on."""
        self._instruments.append(instrument)
        self.ensure_thread()

    def ensure_thread(self) -> None:
        """Start the thread if there is something to call and no thread does."""
        if not self._instruments:
            return
        with LOCK:
            if self._thread is not None or self._stopped:
                return
            thread = threading.Thread(target=self._run, name="tensormeter-observer", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter is ending, or the system has no more threads
                warn_once(Observer, "observable instruments are not observed: %s", error)
                return
            self._thread = thread

    def flush(self, timeout: float) -> bool:
        """Have everything observed once now. Blocks for `timeout` seconds at most; returns whether it is done."""
        if self._thread is None or self._stopped:
            return not self._instruments
        if self.is_current_thread:
            return False  # a callback that flushes
        done = threading.Event()
        self._wanted.append(done)
        self._wake.set()
        return done.wait(timeout)

    def stop(self, timeout: float) -> None:
        """End the thread, which may be inside a callback for `timeout` seconds; it is left alone then."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and not self.is_current_thread:
            self._thread.join(timeout)

    def forget_after_fork(self) -> None:
        """In a forked child: the thread is not here, and may have held locks."""
        self._thread = None
        self._wake = threading.Event()
        self._wanted.clear()
        for instrument in self._instruments:
            for callback in instrument.callbacks:
                callback.lock = threading.Lock()

    def _run(self) -> None:
        while not self._stopped:
            interval = self._interval()
            self._wake.wait(interval)
            self._wake.clear()
            wanted = list(self._wanted)
            options = CallbackOptions(timeout_millis=interval * 1000)
            for instrument in [] if self._stopped else list(self._instruments):
                try:
                    instrument.measure(options)
                except Exception as error:  # the other instruments go on
                    warn_once((Observer, instrument), "%r is not observed: %s", instrument.name, error, error=error)
            for done in wanted:
                self._wanted.remove(done)
                done.set()
