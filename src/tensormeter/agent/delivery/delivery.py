"""Delivery from the spool to the receivers, on one thread for each destination.

Each destination has its own thread, its own backoff and its own place in the spool, so one that fails does not hold up the others.
Requests are sent in order, one at a time.

A destination whose exporter has `independent_signals` has all of that for each signal. So a receiver that accepts metrics alone is
sent them while its log records wait. As long as both signals arrive, they are sent in the order in which they were recorded: a run
begins before its first value and ends after its last one.

The delay between attempts doubles from 1 to 60 seconds with full jitter (`retrying`). A `Retry-After` of up to an hour is a lower
limit. Attempts are not limited while the agent lives. Undelivered requests stay in the spool. See `exporter_guard` for exceptions of
exporters.

A receiver that reports what is on its disk (`Accepted.durability`) is asked for that when the queue is empty: at once if a process
waits for the end of delivery, otherwise after some seconds without an answer.

A destination whose token is refused is parked: it is sent nothing until there is another token, `tensormeter sync` asks the agent
to retry, or a quarter of an hour has passed.

A request that is too large is sent in halves, and those in halves again. The halves and their ids follow from the request, so a new
agent sends the same ones.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.delivery.earlier_progress import take_over_progress
from tensormeter.agent.delivery.exporter_guard import ExporterGuard, describe_error, format_error
from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.delivery.upload_rate import UploadRate
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.spool import Spool
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import SettingsError, SpoolError
from tensormeter.exporter import (
    Accepted,
    Exporter,
    ExporterConfig,
    Rejected,
    Retry,
    TooLarge,
    Unauthorized,
    load_exporter,
)
from tensormeter.logger import get_logger
from tensormeter.retrying import exponential_delays, full_jitter, retry_delay
from tensormeter.settings import Settings

__all__ = ["Delivery", "deliveries"]

logger: Final = get_logger("tensormeter.agent")

_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 60.0
_LONGEST_RETRY_AFTER: Final = 3600.0
_TROUBLE_DELAY: Final = 1.0
_STALLED_FAILURES: Final = 3
_STALLED_DELAY: Final = 10.0
_PARKED: Final = 900.0
"""Seconds until a parked destination is tried again: the server's token may have changed."""

_TOKEN_LOOK: Final = 0.5
"""Seconds between two reads of the token while parked."""

_PATIENCE: Final = 1.0
"""Seconds that an attempt of one signal may take before the other signal stops waiting for its turn."""

_TURN_LOOK: Final = 0.1
"""Seconds between two checks whether it is a signal's turn."""

_ASK_AFTER: Final = 10.0
"""Seconds without an answer after which the receiver is asked what is durable. While rows are logged, their answers report it."""

_ASK_AGAIN: Final = 0.5
"""Seconds between two such questions. The receiver syncs when it is asked, so one is usually enough."""

_HANGING: Final = 15.0
"""Minimum seconds after which an attempt counts as hanging; else three times `export_timeout`, within which it should end."""

_HANGING_CREATION: Final = 120.0
"""Seconds after which creating an exporter counts as hanging: it imports packages, and some connect."""


def deliveries(
    destinations: Iterable[str],
    spool: Path,
    settings: Settings,
    on_progress: Callable[[], None],
    numbering: Numbering | None = None,
) -> "list[Delivery]":
    """Make the deliveries of some destinations: one `Delivery` for each, or one for each of its signals.

    Args:
        destinations: Entry-point names of exporters, each with a label after a colon if there are several of a kind.
        spool: Path of the spool.
        settings: Settings of the run.
        on_progress: Callback, as for `Delivery`.
        numbering: Attempt numbers, as for `Delivery`.

    Raises:
        SettingsError: There is no such exporter.
    """
    all_deliveries = []
    for destination in destinations:
        independent = getattr(load_exporter(destination), "independent_signals", False)
        left_out = {left.signal for left in settings.excluded_signals(destination)}
        groups: list[tuple[Signal, ...]] = (
            [(signal,) for signal in SIGNALS if signal not in left_out] if independent else [SIGNALS]
        )
        rate = UploadRate(settings.upload_rate_of(destination))
        siblings = [
            Delivery(destination, spool, settings, on_progress, signals=group, rate=rate, numbering=numbering)
            for group in groups
        ]
        for delivery in siblings:
            delivery.siblings = [other for other in siblings if other is not delivery]
        all_deliveries += siblings
    return all_deliveries


class Delivery:
    """Delivers the requests of one destination, or those of one signal.

    Attributes:
        destination: Name of the destination.
        signals: Signals that it delivers.
        siblings: Deliveries of the other signals to the same destination.
        failures: Number of failed attempts since the last success.
        error: Error of the last failed attempt.
        refused: Message of the receiver about items that it left out of an accepted request; "" if it accepted all.
        stalled: Whether waiting for this destination makes no sense: several attempts have failed, or the next one is far away.
        parked: Whether its token was refused, so that it waits for another one.
        damaged: Whether the spool is damaged, so that the agent has to repair it.
        refusal: Time since which the spool refuses, and its error; None if it does not.
    """

    def __init__(
        self,
        destination: str,
        spool: Path,
        settings: Settings,
        on_progress: Callable[[], None],
        jitter: Callable[[float], float] = full_jitter,
        *,
        signals: Sequence[Signal] = SIGNALS,
        rate: UploadRate | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        """
        Args:
            destination: Entry-point name of the exporter, with a label after a colon if there are several of a kind.
            spool: Path of the spool.
            settings: Settings of the run.
            on_progress: Callback after each attempt, on this thread. Must not block.
            jitter: Function from a delay to the seconds to wait.
            signals: Signals to deliver.
            rate: Limit on bytes a second that siblings share; by default one for this delivery alone.
            numbering: Settles the numbers of attempts before requests are exported.

        Raises:
            SettingsError: There is no such exporter.
        """
        self.destination = destination
        self.signals = tuple(signals)
        self.siblings: list[Delivery] = []
        self._spool = spool
        self._settings = settings
        self._exporter_type = load_exporter(destination)
        self._on_progress = on_progress
        self._jitter = jitter
        self._guard = ExporterGuard(destination, numbering)
        self._wake = threading.Event()
        self._again = False
        """Whether it was woken for another attempt, and not only for new requests, which wait while attempts fail."""
        self._stop = threading.Event()
        name = "-".join(["tensormeter-deliver", destination, *(self.signals if len(self.signals) == 1 else ())])
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.failures = 0
        self.error = ""
        self.refused = ""
        self.stalled = False
        self.parked = False
        self.damaged = False
        self.refusal: tuple[float, Exception] | None = None
        self._folder = spool.with_name("exporters") / destination
        self._pieces = RequestPieces(destination, self.signals)
        self._rate = rate or UploadRate(settings.upload_rate_of(destination))
        self._urgent = False
        self._arrivals = 0
        self._seen_arrivals = -1
        """Value of `_arrivals` when the queue was empty; -1 while it is not."""
        self._position: int | None = None
        self._answered_at = self._asked_at = 0.0
        """Times at which the receiver last accepted a request, and was last asked what is durable."""
        self._creating_since: float | None = None
        """Time since which an exporter is being created."""
        self._recalled: float | None = None
        """Time at which a sibling that had failed too was successful, until this delivery has made its next attempt."""

    def __str__(self) -> str:
        return f"{self.destination} ({self.signals[0]})" if len(self.signals) == 1 else self.destination

    @property
    def idle(self) -> bool:
        """Whether the queue was empty when it was last read, after the last `arrived`."""
        return self._seen_arrivals == self._arrivals

    @property
    def hangs(self) -> bool:
        """Whether an attempt takes much longer than `export_timeout`, or creating the exporter takes minutes."""
        limits = (
            (self._guard.began, max(_HANGING, 3 * self._settings.export_timeout)),
            (self._creating_since, _HANGING_CREATION),
        )
        now = time.monotonic()
        return any(since is not None and now - since > limit for since, limit in limits)

    @property
    def trouble(self) -> str:
        """Reason why it does not deliver; "" if there is none."""
        if self.hangs:
            return "the exporter does not return" + (f"; before that, {self.error}" if self.error else "")
        return self.error

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Retry at once. Any thread, any number of times."""
        self._again = True
        self._wake.set()

    def arrived(self) -> None:
        """Record that requests have come into the spool. While attempts fail, they wait for the next one. The agent's thread."""
        self._arrivals += 1
        if not self.failures:
            self._wake.set()

    def set_urgent(self, urgent: bool) -> None:
        """Set whether a process waits for everything to be durable, so that the receiver is asked at once. Any thread."""
        is_new = urgent and not self._urgent
        self._urgent = urgent
        if is_new and not self.failures:
            self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread after the present attempt. Blocks up to `timeout` seconds."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(Spool(self._spool, durability=self._settings.durability)) as spool:
                    take_over_progress(spool, self.destination, self.signals, self._folder)
                    config = self._config()
                    exporter = self._make(config)
                    try:
                        self._deliver(spool, exporter, config.token)
                    finally:
                        exporter.shutdown()
            except SpoolDamagedError as error:
                self._failed(str(error), _TROUBLE_DELAY)
                self.damaged = True
                self._on_progress()
                return
            except BaseException as error:  # the exporter cannot be created, or the disk refuses
                if not self.failures:
                    logger.error("delivery to %s failed\n%s", self.destination, format_error(error))
                if isinstance(error, SpoolError):
                    self.refusal = (self.refusal[0] if self.refusal else time.monotonic()), error
                self._failed(describe_error(error), _TROUBLE_DELAY)
                self._on_progress()
                self._stop.wait(_TROUBLE_DELAY)

    def _make(self, config: ExporterConfig) -> Exporter:
        self._creating_since = time.monotonic()
        try:
            return self._exporter_type(config)
        finally:
            self._creating_since = None

    def _config(self) -> ExporterConfig:
        settings = self._settings
        return ExporterConfig(
            endpoint=settings.endpoint,
            token=settings.current_token(),
            timeout=settings.export_timeout,
            destination=self.destination,
            options=settings.options_of(self.destination),
            state=self._folder,
            signals=self.signals,
        )

    def _deliver(self, spool: Spool, exporter: Exporter, token: str | None) -> None:
        """Deliver until `stop` is called, there is another token, or a new exporter is needed."""
        delays = exponential_delays(_FIRST_DELAY, _LONGEST_DELAY)
        while not self._stop.is_set():
            if self._guard.needs_renewal:
                self._guard.needs_renewal = False
                return
            delay = self._deliver_next(spool, exporter, delays)
            if delay is None:
                delays = exponential_delays(_FIRST_DELAY, _LONGEST_DELAY)
                continue
            self._on_progress()
            if self.parked:
                if self._wait_for_token(token):
                    return
                continue
            self._pause(delay)

    def _pause(self, delay: float) -> None:
        """Wait until there is something to do, at most for so many seconds; 0 for no limit."""
        if self.failures:
            self._wake.clear()  # set by requests that came during the failed attempt
        if not (self._again or self._stop.is_set()):
            self._wake.wait(delay or None)
        self._wake.clear()
        self._again = False

    def _wait_for_token(self, refused: str | None) -> bool:
        """Wait while parked. Returns whether there is another token than the refused one."""
        deadline = time.monotonic() + _PARKED
        while not self._stop.is_set() and time.monotonic() < deadline:
            woken = self._wake.wait(_TOKEN_LOOK)
            self._wake.clear()
            self._again = False
            try:
                if self._settings.current_token() != refused:
                    self.parked = False
                    return True
            except SettingsError as error:
                self.error = str(error)
            if woken:
                break
        return False

    def _deliver_next(self, spool: Spool, exporter: Exporter, delays: Generator[float, None, None]) -> float | None:
        """Make one attempt.

        Returns:
            None to go on at once, 0 to wait for new requests, or the seconds to wait before the next attempt.
        """
        arrivals = self._arrivals
        request = self._pieces.next(spool)
        self._position = self._pieces.position
        if request is None:
            keeps = self._pieces.keeps(spool)
            if self.failures and not keeps:
                # The request was given up since; the next one must not wait for another attempt at it.
                self._works()
            if self._seen_arrivals != arrivals:
                self._seen_arrivals = arrivals
                self._call_siblings()
            return self._ask(spool, exporter, delays) if keeps else 0.0
        self._seen_arrivals = -1
        if self._waits_its_turn():
            return _TURN_LOOK
        self._stop.wait(self._rate.reserve(len(request.body)))
        if self._stop.is_set():
            return 0.0
        match self._guard.export(exporter, request, retrying=self.failures > 0):
            case Accepted(refused, message, durability):
                if refused:
                    logger.error("%s refused %d items of %r: %s", self.destination, refused, request, message)
                    self.refused = message or f"{refused} items"
                self._pieces.accepted(spool, refused, durability if hasattr(exporter, "durability") else None)
                self._answered_at = time.monotonic()
            case Rejected(reason, divide):
                self._pieces.rejected(spool, reason, divide=divide)
            case TooLarge(reason):
                self._pieces.halved(spool, reason)
            case Unauthorized(reason):
                if not self.parked:
                    logger.warning(
                        "%s: credentials refused (%s); retrying when the token changes, or in 15 minutes", self, reason
                    )
                self._failed(reason, _PARKED)
                self.parked = True
                return _PARKED
            case Retry(reason, after):
                return self._retry(reason, after, delays)
        recovered = self.failures > 0
        self._works()
        self._position = None  # the next request is not read yet
        self._call_siblings(recovered=recovered)
        self._on_progress()
        return None

    def _retry(self, reason: str, after: float | None, delays: Generator[float, None, None]) -> float:
        delay = retry_delay(next(delays), after, at_most=_LONGEST_RETRY_AFTER, jitter=self._jitter)
        delay = max(delay, 0.001)
        self._failed(reason, delay)
        self.parked = False  # the token was accepted
        logger.warning("%s: %s; attempt %d in %.1f s", self, reason, self.failures + 1, delay)
        return delay

    def _ask(self, spool: Spool, exporter: Exporter, delays: Generator[float, None, None]) -> float | None:
        """Ask the receiver what is durable, if it is time to. Returns as `_deliver_next`."""
        again = self._asked_at + _ASK_AGAIN
        due = again if self._urgent else max(self._answered_at + _ASK_AFTER, again)
        wait = due - time.monotonic()
        if wait > 0 and not self.failures:
            return wait
        self._asked_at = time.monotonic()
        answer = self._guard.ask_durability(exporter)
        if isinstance(answer, Retry):
            return self._retry(answer.reason, answer.after, delays)
        recovered = self.failures > 0
        seen, self._seen_arrivals = (
            self._seen_arrivals,
            -1,
        )  # requests that wait again must never be seen together with `idle`
        recalled = self._pieces.settle(spool, answer)
        self._works()
        self._answered_at = time.monotonic()
        if recalled or recovered:
            self._call_siblings(recovered=recovered)
        self._on_progress()
        if recalled or not self._pieces.keeps(spool):
            return None
        self._seen_arrivals = seen
        return _ASK_AGAIN if self._urgent else _ASK_AFTER

    def _waits_its_turn(self) -> bool:
        """Whether a sibling that works is about to deliver a request that was recorded earlier."""
        position = self._position
        return position is not None and any(sibling._goes_before(position) for sibling in self.siblings)

    def _goes_before(self, position: int) -> bool:
        if self.idle or self.hangs or (self.failures and self._recalled is None):
            return False
        began = self._recalled if self.failures else self._guard.began
        if began is not None and time.monotonic() - began > _PATIENCE:
            return False
        return self._position is None or self._position < position

    def _call_siblings(self, *, recovered: bool = False) -> None:
        """Wake the siblings that wait for their turn. `recovered`: the receiver has just come back, so wake failing ones too."""
        for sibling in self.siblings:
            if recovered and sibling.failures:
                sibling._recalled = time.monotonic()
                sibling.wake()
            elif not sibling.failures:
                sibling._wake.set()

    def _works(self) -> None:
        self.failures = 0
        self.refusal = None
        self.error = ""
        self.stalled = self.parked = False
        self._recalled = None

    def _failed(self, reason: str, delay: float) -> None:
        self.failures += 1
        self.error = reason
        self._recalled = None
        self._call_siblings()
        self.stalled = self.failures >= _STALLED_FAILURES or delay >= _STALLED_DELAY
