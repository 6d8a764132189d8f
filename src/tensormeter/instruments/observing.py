"""Observable instruments, and the thread that calls their callbacks."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, CallbackT, Observation

from tensormeter.instruments.registry import LOCK, warn_once
from tensormeter.instruments.streams import Binder, Bound, StreamGroup
from tensormeter.logger import get_logger
from tensormeter.record.rows.stream_writer import StreamWriter
from tensormeter.record.values.classify import Deferred, DeviceValue, Refused, classify

__all__ = ["ObservableCounter", "ObservableGauge", "ObservableUpDownCounter", "Observer"]

logger: Final = get_logger()

_MOST_OBSERVATIONS: Final = 100_000
"""Observations of one call of a callback, at most: a generator may have no end."""


class _Callback:
    """One of the user's callbacks: a function, or a generator that is sent the options."""

    def __init__(self, callback: CallbackT) -> None:
        self._callback = callback
        self._generator_begun = False
        self.lock = threading.Lock()  # a generator cannot be entered twice; metric readers call on threads of their own

    def __call__(self, options: CallbackOptions, instrument: str) -> list[Observation]:
        """Call it once. Everything that it gives before it fails counts; each kind of fault is warned about once.

        Raises:
            BaseException: Ctrl-C, or what else ends the program, on the main thread.
        """
        observations: list[Observation] = []
        with self.lock:
            try:
                self._collect(self._returned(options), instrument, observations)
            except BaseException as error:
                ends_program = not isinstance(error, Exception)
                if ends_program and threading.current_thread() is threading.main_thread():
                    raise
                warn_once((self, "failed"), "a callback of %r failed: %s", instrument, _describe(error), error=error)
        return observations

    def _returned(self, options: CallbackOptions) -> Any:
        if not isinstance(self._callback, Generator):
            return self._callback(options)
        try:
            if not self._generator_begun:
                self._generator_begun = True
                next(self._callback)
            return self._callback.send(options)
        except StopIteration:
            return ()

    def _collect(self, returned: Any, instrument: str, observations: list[Observation]) -> None:
        if isinstance(returned, Observation):
            warn_once((self, "one"), "a callback of %r returns one Observation; return a list of them", instrument)
            observations.append(returned)
            return
        if returned is None:
            warn_once((self, "none"), "a callback of %r returns None; return a list of Observation", instrument)
            return
        for number, item in enumerate(returned):
            if number == _MOST_OBSERVATIONS:
                warn_once(
                    (self, "endless"),
                    "a callback of %r gives more than %d observations at once; the rest is left out",
                    instrument,
                    _MOST_OBSERVATIONS,
                )
                return
            if _is_observation(item):
                observations.append(item)
            else:
                warn_once(
                    (self, "item"),
                    "a callback of %r gives %r, which is left out; expected an Observation",
                    instrument,
                    type(item).__name__,
                )


def _is_observation(item: object) -> bool:
    if isinstance(item, Observation):
        return True
    try:  # one of the user's own making, which OpenTelemetry's SDK takes as well
        return hasattr(item, "value") and hasattr(item, "attributes")
    except Exception:
        return False


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


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
        given: Any = callbacks or ()
        if callable(given) or isinstance(given, Generator):
            warn_once((_Observable, given), "%r: expected a list of callbacks, got one", self.name)
            given = [given]
        self.callbacks += map(_Callback, given)

    def observe(self, options: CallbackOptions) -> Iterator[Observation]:
        """Call the callbacks. One that fails is warned about once, and stops neither the others nor what it gave before."""
        for callback in list(self.callbacks):
            yield from callback(options, self.name)

    def measure(self, options: CallbackOptions) -> None:
        """Call the callbacks and record what they observe. An observation that cannot be recorded is left out alone.

        Where a view leaves attributes out, observations of one round that become the same stream are added up if they are
        totals; of a gauge the last holds.
        """
        numbers: dict[StreamWriter, float] = {}
        for observation in self.observe(options):
            try:
                self._add(observation, numbers)
            except Exception as error:  # of a value's or a mapping's own code
                warn_once((self, "observation"), "an observation of %r is left out: %s", self.name, _describe(error))
        for stream, number in numbers.items():
            stream.record(number)

    def _add(self, observation: Observation, numbers: dict[StreamWriter, float]) -> None:
        attributes = observation.attributes
        # Without its attributes it would count for another stream.
        bound = self._binder.bind(None if attributes is None else {**attributes})
        try:
            number = classify(observation.value)
        except Refused:
            bound.record(observation.value)  # warns, and counts
            return
        if isinstance(number, (DeviceValue, Deferred)):
            bound.record(observation.value)
            return
        for stream in _streams(bound):
            try:
                stream.check(number)
            except Refused:
                stream.record(number)  # warns, and counts
                continue
            total = stream in numbers and stream.stream.kind != "gauge"
            numbers[stream] = numbers[stream] + number if total else number


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
        self._forked = False
        """Whether this is a forked child in which the thread has not begun."""

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
            self._forked = False

    def flush(self, timeout: float) -> bool:
        """Have everything observed once now. Blocks for `timeout` seconds at most; returns whether it is done.

        In a forked child that has not measured there is nothing to observe.
        """
        if self._thread is None or self._stopped:
            return not self._instruments or self._forked
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
        self._forked = True
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
                except BaseException as error:  # the other instruments go on
                    warn_once((Observer, instrument), "%r is not observed: %s", instrument.name, error, error=error)
            for done in wanted:
                self._wanted.remove(done)
                done.set()
