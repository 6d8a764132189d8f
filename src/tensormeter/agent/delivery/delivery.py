"""Delivery from the spool to receivers, with one thread per destination.

Each destination has its own thread, backoff and position in the spool, so a failing destination does not delay others.
Requests are sent in order, one at a time.

If an exporter has `independent_signals`, each signal of its destination has its own thread, backoff and position. A
receiver that accepts only metrics then still gets them while its log records wait. As long as the receiver accepts both
signals, requests are sent in the order in which they were recorded. A run therefore begins before its first value and
ends after its last value.

The delay between attempts doubles from 1 to 60 seconds with full jitter (`retrying`). A `Retry-After` header sets a
minimum delay of up to an hour. The number of attempts is unlimited while the agent runs. Undelivered requests stay in
the spool. See `exporter_guard` for how exceptions in exporters are handled.

Some receivers report which requests are durable (`Accepted.durability`). When the queue is empty, the agent asks such a
receiver for this report. It asks immediately if a process is waiting for delivery to finish, and otherwise 10 seconds
after the receiver's last response.

A destination whose credentials are refused is parked. Nothing is sent to it until `tensormeter sync` asks the agent to
retry, or 15 minutes have passed. If the token comes from a file, delivery also resumes when the file has another token.
Other credentials come from the agent's environment, which does not change.

A request that is too large is sent in halves, which can be halved again. The halves and their IDs are derived from the
request, so a new agent sends the same halves.
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
from tensormeter.agent.delivery.live_interval import LiveInterval
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
"""Seconds until a parked destination is tried again, because the server may accept the same credentials by then."""

_TOKEN_LOOK: Final = 0.5
"""Seconds between two reads of the token while a destination is parked."""

_PATIENCE: Final = 1.0
"""Maximum seconds that one signal waits for an attempt of the other signal to finish."""

_TURN_LOOK: Final = 0.1
"""Seconds between two checks of whether it is a signal's turn."""

_ASK_AFTER: Final = 10.0
"""Seconds from a receiver's last response, which contains its durability, until it is asked again."""

_ASK_AGAIN: Final = 0.5
"""Seconds between two questions about durability. A receiver syncs when asked, so one question is usually enough."""

_HANGING: Final = 15.0
"""Seconds after which an attempt counts as hanging, or three times `export_timeout` if that is longer."""

_HANGING_CREATION: Final = 120.0
"""Seconds after which creating an exporter counts as hanging. Exporters import packages, and some open connections."""


def deliveries(
    destinations: Iterable[str],
    spool: Path,
    settings: Settings,
    on_progress: Callable[[], None],
    numbering: Numbering | None = None,
) -> "list[Delivery]":
    """Create the deliveries to the given destinations: one `Delivery` per destination, or one per signal.

    Args:
        destinations: Names of the destinations, as for `Delivery`.
        spool: Path of the spool.
        settings: Settings of the run.
        on_progress: Callback, as for `Delivery`.
        numbering: Attempt numbers, as for `Delivery`.

    Raises:
        SettingsError: A destination has no exporter of its name.
    """
    all_deliveries = []
    for destination in destinations:
        independent = getattr(load_exporter(destination), "independent_signals", False)
        left_out = {left.signal for left in settings.excluded_signals(destination)}
        groups: list[tuple[Signal, ...]] = (
            [(signal,) for signal in SIGNALS if signal not in left_out] if independent else [SIGNALS]
        )
        rate = UploadRate(settings.upload_rate_of(destination))
        live = LiveInterval()
        siblings = [
            Delivery(
                destination, spool, settings, on_progress, signals=group, rate=rate, live=live, numbering=numbering
            )
            for group in groups
        ]
        for delivery in siblings:
            delivery.siblings = [other for other in siblings if other is not delivery]
        all_deliveries += siblings
    return all_deliveries


class Delivery:
    """Delivery of all requests for one destination, or only of those with one signal.

    Attributes:
        destination: Name of the destination.
        signals: Signals to deliver.
        siblings: Deliveries of the other signals to the same destination.
        failures: Number of failed attempts since the last success.
        error: Error of the last failed attempt.
        refused: Receiver's message about items that it refused in an accepted request; empty if it accepted all items.
        stalled: Whether waiting for this destination is pointless: several attempts have failed, or the next attempt is
            far off.
        parked: Whether the credentials were refused, so that nothing is sent for a long time.
        damaged: Whether the spool is damaged, so that the agent has to repair it.
        refusal: Time since which the spool has been refusing writes, and the error; None if it accepts them.
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
        live: LiveInterval | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        """
        Args:
            destination: Entry-point name of the exporter, followed by a colon and a label if there are several of a
                kind.
            spool: Path of the spool.
            settings: Settings of the run.
            on_progress: Callback that runs after each attempt, on this delivery's thread. It must not block.
            jitter: Function that takes a delay and returns the seconds to wait.
            signals: Signals to deliver.
            rate: Rate limit that siblings share. By default, the limit applies to this delivery alone.
            live: Interval of live requests that siblings share. By default, it belongs to this delivery alone.
            numbering: Object that settles attempt numbers before requests are exported. By default, requests are sent
                unchanged.

        Raises:
            SettingsError: No exporter has this name.
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
        """Whether `wake` requested another attempt. New requests alone do not end a backoff."""
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
        self._token_file: Path | None = None
        """File whose next token the exporter will use; None if the exporter's credentials cannot change."""
        if settings.token is None and getattr(self._exporter_type, "uses_token", True):
            self._token_file = settings.token_file
        self._folder = spool.with_name("exporters") / destination
        self._pieces = RequestPieces(destination, self.signals)
        self._rate = rate or UploadRate(settings.upload_rate_of(destination))
        self._live = live or LiveInterval()
        self._urgent = False
        self._arrivals = 0
        self._seen_arrivals = -1
        """Value of `_arrivals` when the queue was last found empty; -1 while it is not empty."""
        self._position: int | None = None
        self._answered_at = self._asked_at = 0.0
        """Times at which the receiver last accepted a request or reported durability, and was last asked for it."""
        self._creating_since: float | None = None
        """Time at which creation of an exporter began; None if no exporter is being created."""
        self._recalled: float | None = None
        """Time at which a sibling that was also failing recovered; None after this delivery's next attempt."""

    def __str__(self) -> str:
        return f"{self.destination} ({self.signals[0]})" if len(self.signals) == 1 else self.destination

    @property
    def idle(self) -> bool:
        """Whether the queue was empty when it was last read, with no call to `arrived` since."""
        return self._seen_arrivals == self._arrivals

    @property
    def live_interval(self) -> float | None:
        """Seconds between two requests while the run has viewers; None if it has none, or if attempts fail."""
        return None if self.failures else self._live.current()

    @property
    def hangs(self) -> bool:
        """Whether an attempt is taking much longer than `export_timeout`, or creating the exporter takes minutes."""
        limits = (
            (self._guard.began, max(_HANGING, 3 * self._settings.export_timeout)),
            (self._creating_since, _HANGING_CREATION),
        )
        now = time.monotonic()
        return any(since is not None and now - since > limit for since, limit in limits)

    @property
    def trouble(self) -> str:
        """Reason why nothing is delivered; empty if there is none."""
        if self.hangs:
            return "the exporter has not returned" + (f"; before that, {self.error}" if self.error else "")
        return self.error

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Retry immediately. Any thread may call this, any number of times."""
        self._again = True
        self._wake.set()

    def arrived(self) -> None:
        """Record that the spool has new requests. While attempts fail, the new requests wait for the next attempt.

        Only the agent's main thread may call this.
        """
        self.note_arrival()
        self.wake_if_working()

    def note_arrival(self) -> None:
        """Record that the spool has new requests, and that `wake_if_working` follows."""
        self._arrivals += 1

    def wake_if_working(self) -> None:
        """Send new requests now, unless the last attempt failed."""
        if not self.failures:
            self._wake.set()

    def set_urgent(self, urgent: bool) -> None:
        """Set whether a process is waiting for everything to become durable, so that the receiver is asked immediately.

        Any thread may call this.
        """
        is_new = urgent and not self._urgent
        self._urgent = urgent
        if is_new and not self.failures:
            self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread after its current attempt. This blocks for up to `timeout` seconds."""
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
            except BaseException as error:  # the exporter could not be created, or the disk refused access
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
        """Deliver until `stop` is called, the token changes or a new exporter is needed."""
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
        """Wait until there is something to do, for up to `delay` seconds, or without a limit if `delay` is 0."""
        if self.failures:
            self._wake.clear()  # set by requests that arrived during the failed attempt
        if not (self._again or self._stop.is_set()):
            self._wake.wait(delay or None)
        self._wake.clear()
        self._again = False

    def _wait_for_token(self, refused: str | None) -> bool:
        """Wait while parked, and return whether the token file has a token other than the refused one."""
        deadline = time.monotonic() + _PARKED
        while not self._stop.is_set() and time.monotonic() < deadline:
            woken = self._wake.wait(_TOKEN_LOOK if self._token_file else deadline - time.monotonic())
            self._wake.clear()
            self._again = False
            try:
                if self._token_file and self._settings.current_token() != refused:
                    self.parked = False
                    return True
            except SettingsError as error:
                self.error = str(error)
            if woken:
                break
        return False

    def _deliver_next(self, spool: Spool, exporter: Exporter, delays: Generator[float, None, None]) -> float | None:
        """Make one attempt to deliver the next request.

        Returns:
            None to continue immediately, 0 to wait for new requests, or the seconds to wait before the next attempt.
        """
        arrivals = self._arrivals
        request = self._pieces.next(spool)
        self._position = self._pieces.position
        if request is None:
            keeps = self._pieces.keeps(spool)
            if self.failures and not keeps:
                # The request that failed has left the spool. The next request must not wait for its retry.
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
        began = time.monotonic()
        match self._guard.export(exporter, request, retrying=self.failures > 0):
            case Accepted(refused, message, durability) as outcome:
                self._live.note(outcome, time.monotonic() - began)
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
                    logger.warning("%s: credentials refused (%s); %s", self, reason, self._next_credentials())
                self._failed(reason, _PARKED)
                self.parked = True
                return _PARKED
            case Retry(reason, after):
                return self._retry(reason, after, delays)
        recovered = self.failures > 0
        self._works()
        self._position = None  # the next request has not been read yet
        self._call_siblings(recovered=recovered)
        self._on_progress()
        return None

    def _next_credentials(self) -> str:
        """Return when the next attempt is made, and how to use other credentials."""
        if self._token_file:
            return f"retrying when the token in {self._token_file} changes, or in 15 minutes"
        return (
            "retrying in 15 minutes; environment variables of a running agent cannot change, so to use other credentials, "
            "set them and run `tensormeter sync` after the run has ended"
        )

    def _retry(self, reason: str, after: float | None, delays: Generator[float, None, None]) -> float:
        delay = retry_delay(next(delays), after, at_most=_LONGEST_RETRY_AFTER, jitter=self._jitter)
        delay = max(delay, 0.001)
        self._failed(reason, delay)
        self.parked = False  # the token was accepted
        logger.warning("%s: %s; delivery attempt %d in %.1f s", self, reason, self.failures + 1, delay)
        return delay

    def _ask(self, spool: Spool, exporter: Exporter, delays: Generator[float, None, None]) -> float | None:
        """Ask the receiver which requests are durable, if this is due. Return a delay, as `_deliver_next` does."""
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
        )  # `idle` must be false while recalled requests wait
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
        """Return whether a working sibling is about to deliver a request that was recorded earlier."""
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
        """Wake siblings that wait for their turn, and failing siblings too if the receiver has `recovered`."""
        for sibling in self.siblings:
            if recovered and sibling.failures:
                sibling._recalled = time.monotonic()
                sibling.wake()
            elif not sibling.idle:
                sibling.wake_if_working()

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
