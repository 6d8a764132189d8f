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
"""Maximum number of observations that a single call of a callback may return. The limit stops endless generators."""


class _Callback:
    """A user's callback: a function, or a generator that receives the options through `send`."""

    def __init__(self, callback: CallbackT) -> None:
        self._callback = callback
        self._generator_begun = False
        self.lock = threading.Lock()  # a generator cannot be entered twice, and metric readers use other threads

    def __call__(self, options: CallbackOptions, instrument: str) -> list[Observation]:
        """Call the callback once. If it fails, keep its earlier observations, and warn once for each kind of failure.

        Raises:
            BaseException: The callback was interrupted on the main thread, for example by Ctrl-C.
        """
        observations: list[Observation] = []
        with self.lock:
            try:
                self._collect(self._call(options), instrument, observations)
            except BaseException as error:
                ends_program = not isinstance(error, Exception)
                if ends_program and threading.current_thread() is threading.main_thread():
                    raise
                warn_once((self, "failed"), "a callback of %r failed: %s", instrument, _describe(error), error=error)
        return observations

    def _call(self, options: CallbackOptions) -> Any:
        if not isinstance(self._callback, Generator):
            return self._callback(options)
        try:
            if not self._generator_begun:
                self._generator_begun = True
                next(self._callback)
            return self._callback.send(options)
        except StopIteration:
            return ()

    def _collect(self, result: Any, instrument: str, observations: list[Observation]) -> None:
        if isinstance(result, Observation):
            warn_once((self, "one"), "a callback of %r returned one Observation; return a list of them", instrument)
            observations.append(result)
            return
        if result is None:
            warn_once(
                (self, "none"), "a callback of %r returned None; return a list of Observation objects", instrument
            )
            return
        for number, item in enumerate(result):
            if number == _MOST_OBSERVATIONS:
                warn_once(
                    (self, "endless"),
                    "a callback of %r returned more than %d observations; dropped the rest",
                    instrument,
                    _MOST_OBSERVATIONS,
                )
                return
            if _is_observation(item):
                observations.append(item)
            else:
                warn_once(
                    (self, "item"),
                    "a callback of %r returned a %s, which was dropped; expected an Observation",
                    instrument,
                    type(item).__name__,
                )


def _is_observation(item: object) -> bool:
    if isinstance(item, Observation):
        return True
    try:  # OpenTelemetry's SDK also accepts a user-defined class
        return hasattr(item, "value") and hasattr(item, "attributes")
    except Exception:  # the object's own code may raise anything
        return False


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _Observable:
    """Base class of the observable instruments. Meters create the instruments."""

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
        """Add callbacks. The meter calls this method when the same instrument is requested again."""
        added: Any = callbacks or ()
        if callable(added) or isinstance(added, Generator):
            warn_once(
                (_Observable, added), "%r: expected a list of callbacks, got one callback; pass a list", self.name
            )
            added = [added]
        self.callbacks += map(_Callback, added)

    def observe(self, options: CallbackOptions) -> Iterator[Observation]:
        """Call the callbacks. If a callback fails, warn once, and keep all other observations."""
        for callback in list(self.callbacks):
            yield from callback(options, self.name)

    def measure(self, options: CallbackOptions) -> None:
        """Call the callbacks and record their observations. Skip observations that cannot be recorded.

        A view that removes attributes can map several observations of one round to the same stream. Their values are then added
        up, but a gauge keeps only the last value.
        """
        numbers: dict[StreamWriter, float] = {}
        for observation in self.observe(options):
            try:
                self._add(observation, numbers)
            except Exception as error:  # raised by the value's or the mapping's own code
                warn_once((self, "observation"), "dropped an observation of %r: %s", self.name, _describe(error))
        for stream, number in numbers.items():
            stream.record(number)

    def _add(self, observation: Observation, numbers: dict[StreamWriter, float]) -> None:
        attributes = observation.attributes
        # An exception here drops the observation. Without its attributes, it would go to another stream.
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
    """An instrument that observes non-decreasing totals maintained by other code."""


class ObservableUpDownCounter(_Observable, metrics.ObservableUpDownCounter):
    """An instrument that observes totals maintained by other code. The totals may decrease."""


class ObservableGauge(_Observable, metrics.ObservableGauge):
    """An instrument that observes current values, such as temperatures."""


class Observer:
    """The `tensormeter-observer` thread, which calls all of a provider's callbacks one after another.

    The thread starts when the first observable instrument is created. In a forked child process, the first measurement starts
    it.
    """

    def __init__(self, interval: Callable[[], float]) -> None:
        """Create the observer without starting its thread.

        Args:
            interval: Function that returns the number of seconds between two rounds of calls.
        """
        self._interval = interval
        self._instruments: list[_Observable] = []
        self._wake = threading.Event()
        self._flushes: deque[threading.Event] = deque()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._forked = False
        """Whether this is a forked child process that has not started the thread yet."""

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is a callback on the observer thread."""
        return self._thread is threading.current_thread()

    def add(self, instrument: _Observable) -> None:
        """Add an instrument. From now on, the thread also calls its callbacks."""
        self._instruments.append(instrument)
        self.ensure_thread()

    def ensure_thread(self) -> None:
        """Start the thread if there are instruments and the thread is not running."""
        if not self._instruments:
            return
        with LOCK:
            if self._thread is not None or self._stopped:
                return
            thread = threading.Thread(target=self._run, name="tensormeter-observer", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter is exiting, or the system has no more threads
                warn_once(Observer, "cannot start a thread, so observable instruments will not be observed: %s", error)
                return
            self._thread = thread
            self._forked = False

    def flush(self, timeout: float) -> bool:
        """Call all callbacks once now, and wait up to `timeout` seconds. Return whether all of them returned in time.

        A forked child process that has not recorded any measurements skips the callbacks.
        """
        if self._thread is None or self._stopped:
            return not self._instruments or self._forked
        if self.is_current_thread:
            return False  # called by a callback, which cannot wait for itself
        done = threading.Event()
        self._flushes.append(done)
        self._wake.set()
        return done.wait(timeout)

    def stop(self, timeout: float) -> None:
        """Stop the thread, and wait up to `timeout` seconds for a running callback to return."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and not self.is_current_thread:
            self._thread.join(timeout)

    def forget_after_fork(self) -> None:
        """Reset the observer in a forked child process. The thread does not exist there, but may have held locks."""
        self._thread = None
        self._forked = True
        self._wake = threading.Event()
        self._flushes.clear()
        for instrument in self._instruments:
            for callback in instrument.callbacks:
                callback.lock = threading.Lock()

    def _run(self) -> None:
        while not self._stopped:
            interval = self._interval()
            self._wake.wait(interval)
            self._wake.clear()
            flushes = list(self._flushes)
            options = CallbackOptions(timeout_millis=interval * 1000)
            for instrument in [] if self._stopped else list(self._instruments):
                try:
                    instrument.measure(options)
                except BaseException as error:  # the other instruments are observed all the same
                    warn_once((Observer, instrument), "cannot observe %r: %s", instrument.name, error, error=error)
            for done in flushes:
                self._flushes.remove(done)
                done.set()
