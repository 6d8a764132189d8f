"""Delivery: from the spool to the receivers, on threads of its own.

Each destination has its own thread, its own backoff and its own place in the spool, so a bad one holds up nobody else.
Requests are sent in order, one at a time.

A destination whose exporter has `independent_signals` has all of that for each signal, so a receiver that takes metrics alone gets
them while its log records wait. As long as both signals arrive, they still go in the order in which they were recorded: a run
begins before its first value and ends after its last one.

Waiting between attempts doubles from 1 to 60 seconds with full jitter (`retrying`); a `Retry-After` is a floor under it, up to
an hour.
There is no limit on attempts while the agent lives; what it leaves stays in the spool.

An exporter that raises an exception is a different matter, because one item may be the cause and would block the queue for ever.
An outage (`outages`) is retried without a limit. After any other exception the request is tried three times, the last time
with a new exporter, and then divided until the item that causes the exception stands alone, which is set aside.

A receiver that says how far its disk is (`Accepted.durability`) is asked for that when nothing is left to send: at once if somebody
waits for the end of delivery, else after a while without an answer that says it.

A receiver that refuses the token gets nothing more until there is another token, somebody says to try again, or a quarter of
an hour is over: the destination is parked.
A request that is too large is sent in halves, and those in halves again; which ones they are, and their ids, follow from the
request, so that a new agent sends the same ones.
"""

import dataclasses
import math
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.delivery.request_pieces import RequestPieces
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.spool import Spool
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import SettingsError, SpoolError
from tensormeter.exporter import (
    Accepted,
    Durability,
    Exporter,
    ExporterConfig,
    Outcome,
    Rejected,
    Request,
    Retry,
    TooLarge,
    Unauthorized,
    load_exporter,
)
from tensormeter.logger import get_logger
from tensormeter.outages import is_outage
from tensormeter.retrying import exponential_delays, full_jitter
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
"""Seconds after which a parked destination is tried again: a server's token can change, too."""

_TOKEN_LOOK: Final = 0.5

_PATIENCE: Final = 1.0
"""Seconds that an attempt of one signal may take before the other signal no longer waits for its turn."""

_TURN_LOOK: Final = 0.1

_TRIES: Final = 3
"""Attempts at a request whose exporter raises, before the request is divided."""

_TRIES_OF_ITEM: Final = 2
"""Attempts at a single item of such a request, before the item is set aside. A part with several items is divided at once."""

_LEAST: Final = 2
"""Points of a request that cannot be divided: a value and its step."""

_LONGEST_REASON: Final = 500
_ASK_AFTER: Final = 10.0
"""Seconds without an answer after which the receiver is asked what is durable: as long as rows are logged, their answers say it."""

_ASK_AGAIN: Final = 0.5
"""Seconds between two such questions; the receiver syncs when it is asked, so one is enough as a rule."""

_HANGING: Final = 15.0
"""Seconds after which an attempt hangs, at least; or three times `export_timeout`, within which each has to end."""

_HANGING_MAKING: Final = 120.0
"""Seconds after which making an exporter hangs: packages are imported, and some connect."""


class UploadRate:
    """Limits the average rate at which bytes are sent to one destination. Any thread."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, size: int) -> float:
        """Count bytes that are about to be sent, and return the seconds to wait before that. Does not block."""
        if self._bytes_per_second is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self._bytes_per_second
            return start - now


def deliveries(
    destinations: Iterable[str],
    spool: Path,
    settings: Settings,
    on_progress: Callable[[], None],
    numbering: Numbering | None = None,
) -> "list[Delivery]":
    """Make the deliveries of some destinations: one `Delivery` for each, or one for each of its signals.

    Args:
        destinations: Entry-point names of exporters, and behind a colon what tells one from others of its kind.
        spool: Path of the spool.
        settings: Of the run.
        on_progress: As for `Delivery`.
        numbering: As for `Delivery`.

    Raises:
        SettingsError: There is no such exporter.
    """
    found = []
    for destination in destinations:
        independent = getattr(load_exporter(destination), "independent_signals", False)
        left_out = {left.signal for left in settings.signals_left_out(destination)}
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
        found += siblings
    return found


class Delivery:
    """Delivers the requests of one destination, or those of one signal.

    Attributes:
        destination: Its name.
        signals: The signals that it delivers.
        siblings: Deliveries of the other signals to the same destination.
        failures: Attempts that have failed since the last success.
        error: What the last of them said.
        refused: What the receiver said last of items that it left out of a request which it took; "" if it took all.
        stalled: Whether it makes no sense to wait for this destination: several attempts have failed, or the next one is
            far away.
        parked: Whether its token was refused, so that it waits for another one.
        damaged: Whether the spool needs repair, which is the agent's business.
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
            destination: Entry-point name of the exporter, and behind a colon what tells it from others of its kind.
            spool: Path of the spool.
            settings: Of the run.
            on_progress: Called on this thread after each attempt. Must not block.
            jitter: Turns a delay into the one to wait.
            signals: The signals to deliver.
            rate: The destination's limit on bytes a second, shared with its siblings; its own without one.
            numbering: Settles the numbers of attempts before anything is exported.

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
        self._numbering = numbering
        self._wake = threading.Event()
        self._again = False
        """Whether it was woken for a further attempt, and not for news alone, which wait while attempts fail."""
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
        """Since when the spool has refused, and what it said; None if it does not refuse."""
        self._folder = spool.with_name("exporters") / destination
        self._outgoing = RequestPieces(destination, self.signals)
        self._rate = rate or UploadRate(settings.upload_rate_of(destination))
        self._urgent = False
        self._news = 0
        self._seen = -1
        """The value of `_news` when nothing was found to deliver; -1 while there is something."""
        self._position: int | None = None
        self._attempt_began: float | None = None
        self._raising = ""
        """Id of the request at which the exporter raised an exception last."""
        self._raises = 0
        self._divided = ""
        """Id of the last request that was divided because the exporter raised an exception."""
        self._renew = False
        """Whether the next attempt needs a new exporter: the present one may have been left in a broken state."""
        self._answered_at = self._asked_at = 0.0
        """When the receiver has accepted something last, and when it was last asked what is durable."""
        self._making_since: float | None = None
        """Since when an exporter is being made."""
        self._recalled: float | None = None
        """When a sibling that had failed too was successful, until this delivery has made an attempt of its own."""

    def __str__(self) -> str:
        return f"{self.destination} ({self.signals[0]})" if len(self.signals) == 1 else self.destination

    @property
    def idle(self) -> bool:
        """Whether it has looked for something to deliver since the last `arrived`, and found nothing."""
        return self._seen == self._news

    @property
    def hangs(self) -> bool:
        """Whether the exporter has not returned for much longer than `export_timeout`, or has not been made for minutes."""
        limits = (
            (self._attempt_began, max(_HANGING, 3 * self._settings.export_timeout)),
            (self._making_since, _HANGING_MAKING),
        )
        now = time.monotonic()
        return any(since is not None and now - since > limit for since, limit in limits)

    @property
    def trouble(self) -> str:
        """What keeps it from delivering; "" if nothing does."""
        if self.hangs:
            return "the exporter does not return" + (f"; before that, {self.error}" if self.error else "")
        return self.error

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Try again at once. Any thread, any number of times."""
        self._again = True
        self._wake.set()

    def arrived(self) -> None:
        """Something has come into the spool. While attempts fail, it waits for the next one. The agent's main thread."""
        self._news += 1
        if not self.failures:
            self._wake.set()

    def set_urgent(self, urgent: bool) -> None:
        """Set whether a process waits for everything to be durable, so that the receiver is asked at once. Any thread."""
        is_news = urgent and not self._urgent
        self._urgent = urgent
        if is_news and not self.failures:
            self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread, after the attempt that is under way. Blocks up to `timeout` seconds."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(Spool(self._spool, durability=self._settings.durability)) as spool:
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
            except BaseException as error:  # an exporter that cannot be constructed, or a disk that refuses
                if not self.failures:
                    logger.error("delivery to %s failed\n%s", self.destination, _trace(error))
                if isinstance(error, SpoolError):
                    self.refusal = (self.refusal[0] if self.refusal else time.monotonic()), error
                self._failed(_describe(error), _TROUBLE_DELAY)
                self._on_progress()
                self._stop.wait(_TROUBLE_DELAY)

    def _make(self, config: ExporterConfig) -> Exporter:
        self._making_since = time.monotonic()
        try:
            return self._exporter_type(config)
        finally:
            self._making_since = None

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
        """Deliver until told to stop, or until there is another token, or a reason for a new exporter."""
        delays = exponential_delays(_FIRST_DELAY, _LONGEST_DELAY)
        while not self._stop.is_set():
            if self._renew:
                self._renew = False
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
        """Wait until there is something to do, or for so many seconds; 0: without a limit."""
        if self.failures:
            self._wake.clear()  # news that came during an attempt that failed
        if not (self._again or self._stop.is_set()):
            self._wake.wait(delay or None)
        self._wake.clear()
        self._again = False

    def _wait_for_token(self, refused: str | None) -> bool:
        """Wait while parked. Returns whether there is another token."""
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
            None to go on at once, 0 to wait for something new, or the seconds to wait before the next attempt.
        """
        news = self._news
        request = self._outgoing.next(spool)
        self._position = self._outgoing.position
        if request is None:
            keeps = self._outgoing.keeps(spool)
            if self.failures and not keeps:
                # The request was given up since; the next one must not wait for another attempt at it.
                self._works()
            if self._seen != news:
                self._seen = news
                self._call_siblings()
            return self._ask(spool, exporter, delays) if keeps else 0.0
        self._seen = -1
        if self._waits_its_turn():
            return _TURN_LOOK
        self._stop.wait(self._rate.reserve(len(request.body)))
        if self._stop.is_set():
            return 0.0
        match self._export(exporter, request):
            case Accepted(refused, message, durability):
                if refused:
                    logger.error("%s refused %d items of %r: %s", self.destination, refused, request, message)
                    self.refused = message or f"{refused} items"
                self._outgoing.accepted(spool, refused, durability if hasattr(exporter, "durability") else None)
                self._answered_at = time.monotonic()
            case Rejected(reason, divide):
                self._outgoing.rejected(spool, reason, divide=divide)
            case TooLarge(reason):
                self._outgoing.halved(spool, reason)
            case Unauthorized(reason):
                if not self.parked:
                    logger.warning("%s: %s; nothing is sent until there is another token", self, reason)
                self._failed(reason, _PARKED)
                self.parked = True
                return _PARKED
            case Retry(reason, after):
                return self._retry(reason, after, delays)
        recovered = self.failures > 0
        self._works()
        self._position = None  # the next one is not known yet
        self._call_siblings(recovered=recovered)
        self._on_progress()
        return None

    def _retry(self, reason: str, after: float | None, delays: Generator[float, None, None]) -> float:
        delay = max(self._jitter(next(delays)), min(after or 0.0, _LONGEST_RETRY_AFTER), 0.001)
        self._failed(reason, delay)
        self.parked = False  # it was not the token this time
        logger.warning("%s: %s; attempt %d in %.1f s", self, reason, self.failures + 1, delay)
        return delay

    def _ask(self, spool: Spool, exporter: Exporter, delays: Generator[float, None, None]) -> float | None:
        """Ask what is durable, if it is time to. Returns as `_deliver_next`."""
        again = self._asked_at + _ASK_AGAIN
        due = again if self._urgent else max(self._answered_at + _ASK_AFTER, again)
        wait = due - time.monotonic()
        if wait > 0 and not self.failures:
            return wait
        ask: Callable[[], Durability | Retry | None] | None = getattr(exporter, "durability", None)
        self._asked_at = time.monotonic()
        try:
            answer = ask() if ask is not None else None
        except Exception as error:
            logger.error("exporter %s failed\n%s", self.destination, _trace(error))
            answer = Retry(f"{type(error).__name__}: {error}")
        if isinstance(answer, Retry):
            return self._retry(answer.reason, answer.after, delays)
        recovered = self.failures > 0
        seen, self._seen = self._seen, -1  # what waits again must never be seen together with idleness
        recalled = self._outgoing.settle(spool, answer)
        self._works()
        self._answered_at = time.monotonic()
        if recalled or recovered:
            self._call_siblings(recovered=recovered)
        self._on_progress()
        if recalled or not self._outgoing.keeps(spool):
            return None
        self._seen = seen
        return _ASK_AGAIN if self._urgent else _ASK_AFTER

    def _waits_its_turn(self) -> bool:
        """Whether something that was recorded earlier is about to be delivered by a sibling to which delivery works."""
        position = self._position
        return position is not None and any(sibling._goes_before(position) for sibling in self.siblings)

    def _goes_before(self, position: int) -> bool:
        if self.idle or self.hangs or (self.failures and self._recalled is None):
            return False
        began = self._recalled if self.failures else self._attempt_began
        if began is not None and time.monotonic() - began > _PATIENCE:
            return False
        return self._position is None or self._position < position

    def _call_siblings(self, *, recovered: bool = False) -> None:
        """Wake the siblings that wait for their turn; those that fail, too, if the receiver has just come back."""
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

    def _export(self, exporter: Exporter, request: Request) -> Outcome:
        self._attempt_began = time.monotonic()
        try:
            if self._numbering is not None:
                if (retry := self._numbering.ask(exporter)) is not None:
                    return retry
                request = self._numbering.rewrite(request)
            outcome = _checked(exporter.export(request), request.items)
            if self._numbering is not None and isinstance(outcome, Accepted):
                self._numbering.accepted()
        except BaseException as error:  # whatever a library raises, `SystemExit` too: the queue must go on
            return self._outcome_of(error, request)
        finally:
            self._attempt_began = None
        self._raising = ""
        return outcome

    def _outcome_of(self, error: BaseException, request: Request) -> Outcome:
        """What to do about an exception: try again, or divide the request."""
        reason = _describe(error)
        if is_outage(error):
            logger.warning("exporter %s failed\n%s", self.destination, reason if self.failures else _trace(error))
            return Retry(reason)
        if self._raising != request.id:
            self._raising, self._raises = request.id, 0
        self._raises += 1
        part = bool(self._divided) and request.id.startswith(f"{self._divided}.")
        if not part and self._raises == 1:
            logger.error("exporter %s failed at %r\n%s", self.destination, request, _trace(error))
        tries = _TRIES if not part else _TRIES_OF_ITEM if request.items <= _LEAST else 1
        if self._raises < tries:
            self._renew = self._raises == tries - 1
            return Retry(reason)
        if not part:
            self._divided = request.id
        return Rejected(f"the exporter raised {reason}", divide=True)


def _checked(outcome: object, items: int) -> Outcome:
    """An outcome with fields of the right types, as far as they can be made so.

    Raises:
        TypeError, ValueError: The exporter returned something else.
    """
    match outcome:
        case Accepted():
            rejected = min(max(int(outcome.rejected), 0), items)
            return dataclasses.replace(outcome, rejected=rejected, message=_plain(outcome.message))
        case Retry():
            after = None if outcome.after is None else float(outcome.after)
            return dataclasses.replace(
                outcome, reason=_plain(outcome.reason), after=after if after and math.isfinite(after) else None
            )
        case Rejected() | TooLarge() | Unauthorized():
            return dataclasses.replace(outcome, reason=_plain(outcome.reason))
    raise TypeError(f"expected an Outcome from the exporter, got {type(outcome).__name__}")


def _describe(error: BaseException) -> str:
    """Type and text of an exception."""
    try:
        text = str(error)
    except Exception:  # of an exception whose own text cannot be made
        text = ""
    name = type(error).__name__
    return f"{name}: {_plain(text)}" if text else name


def _trace(error: BaseException) -> str:
    """The traceback of an exception, for the log. Its text is shortened as in `_describe`, because it may quote the data."""
    return "".join([*traceback.format_tb(error.__traceback__), _describe(error)])


def _plain(text: object) -> str:
    """A text that every file and database can hold, not too long: it may quote the data."""
    plain = str(text).encode(errors="replace").decode()
    return plain if len(plain) <= _LONGEST_REASON else f"{plain[:_LONGEST_REASON]}..."
