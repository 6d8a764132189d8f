"""Delivery: one thread for each destination, from the spool to the receiver.

Each destination has its own thread, its own backoff and its own place in the spool, so a bad one holds up nobody else.
Requests go out in order, one at a time; joined or divided where the destination has a pace of its own (`outgoing`).
Waiting between attempts doubles from 1 to 60 seconds with full jitter (`backoff.expo`, `backoff.full_jitter`; see "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015); a `Retry-After` is a floor under it, up to an hour.
There is no limit on attempts while the agent lives; what it leaves stays in the spool.

A receiver that refuses the token gets nothing more until there is another token, somebody says to try again, or a quarter of
an hour is over: the destination is parked.
A request that is too large is sent in halves, and those in halves again; which ones they are, and their ids, follow from the
request, so that a new agent sends the same ones.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Final

import backoff

from tensormeter.errors import SettingsError
from tensormeter.exporter import (
    Accepted,
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
from tensormeter.pipeline.errors import SpoolDamagedError
from tensormeter.pipeline.outgoing import Outgoing
from tensormeter.pipeline.spool import Spool
from tensormeter.settings import Settings

__all__ = ["Delivery"]

logger: Final = logging.getLogger("tensormeter.agent")

_LONGEST_RETRY_AFTER: Final = 3600.0
_TROUBLE_DELAY: Final = 1.0
_STALLED_FAILURES: Final = 3
_STALLED_DELAY: Final = 10.0
_PARKED: Final = 900.0
"""Seconds after which a parked destination is tried again: a server's token can change, too."""

_TOKEN_LOOK: Final = 0.5


class Delivery:
    """Delivers the requests of one destination.

    Attributes:
        destination: Its name.
        failures: Attempts that have failed since the last success.
        error: What the last of them said.
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
        jitter: Callable[[float], float] = backoff.full_jitter,
    ) -> None:
        """
        Args:
            destination: Entry-point name of the exporter, and behind a colon what tells it from others of its kind.
            spool: Path of the spool.
            settings: Of the run.
            on_progress: Called on this thread after each attempt. Must not block.
            jitter: Turns a delay into the one to wait.

        Raises:
            SettingsError: There is no such exporter.
        """
        self.destination = destination
        self._spool = spool
        self._settings = settings
        self._exporter_type = load_exporter(destination)
        self._on_progress = on_progress
        self._jitter = jitter
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tensormeter-deliver-{destination}", daemon=True)
        self.failures = 0
        self.error = ""
        self.stalled = False
        self.parked = False
        self.damaged = False
        self._pace = settings.pace_of(destination)
        self._folder = spool.with_name("exporters") / destination
        self._outgoing = Outgoing(destination, self._pace, self._folder)
        self._free_at = 0.0

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something new, or a reason to try again at once. Any thread, any number of times."""
        self._wake.set()

    def hurry(self, hurry: bool) -> None:
        """Whether nothing shall wait in the spool for others to go with it. Any thread."""
        news = hurry and not self._outgoing.hurry
        self._outgoing.hurry = hurry
        if news and not self.failures:
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
                    exporter = self._exporter_type(config)
                    try:
                        self._deliver(spool, exporter, config.token)
                    finally:
                        exporter.shutdown()
            except SpoolDamagedError as error:
                self._failed(str(error), _TROUBLE_DELAY)
                self.damaged = True
                self._on_progress()
                return
            except Exception as error:  # an exporter that cannot be constructed, or a disk that refuses
                if not self.failures:
                    logger.exception("delivery to %s failed", self.destination)
                self._failed(f"{type(error).__name__}: {error}", _TROUBLE_DELAY)
                self._on_progress()
                self._stop.wait(_TROUBLE_DELAY)

    def _config(self) -> ExporterConfig:
        settings = self._settings
        return ExporterConfig(
            endpoint=settings.endpoint,
            token=settings.current_token(),
            timeout=settings.export_timeout,
            destination=self.destination,
            options=settings.options_of(self.destination),
            state=self._folder,
        )

    def _deliver(self, spool: Spool, exporter: Exporter, token: str | None) -> None:
        """Deliver until told to stop, or until there is another token to do it with."""
        delays = self._delays()
        while not self._stop.is_set():
            delay = self._deliver_next(spool, exporter, delays)
            if delay is None:
                delays = self._delays()
                continue
            self._on_progress()
            if self.parked:
                if self._wait_for_token(token):
                    return
                continue
            self._wake.wait(delay or None)
            self._wake.clear()

    def _wait_for_token(self, refused: str | None) -> bool:
        """Wait while parked. Returns whether there is another token."""
        deadline = time.monotonic() + _PARKED
        while not self._stop.is_set() and time.monotonic() < deadline:
            woken = self._wake.wait(_TOKEN_LOOK)
            self._wake.clear()
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
        request = self._outgoing.next(spool)
        if request is None:
            return self._outgoing.due_in
        self._wait_for_rate()
        if self._stop.is_set():
            return 0.0
        self._free_at = time.monotonic() + len(request.body) / (self._pace.max_upload_bytes_per_second or float("inf"))
        match self._export(exporter, request):
            case Accepted(refused, message):
                if refused:
                    logger.error("%s refused %d items of %r: %s", self.destination, refused, request, message)
                self._outgoing.accepted(spool, refused)
            case Rejected(reason):
                self._outgoing.rejected(spool, reason)
            case TooLarge(reason):
                self._outgoing.halved(spool, reason)
            case Unauthorized(reason):
                if not self.parked:
                    logger.warning("%s: %s; nothing is sent until there is another token", self.destination, reason)
                self._failed(reason, _PARKED)
                self.parked = True
                return _PARKED
            case Retry(reason, after):
                delay = max(self._jitter(next(delays)), min(after or 0.0, _LONGEST_RETRY_AFTER), 0.001)
                self._failed(reason, delay)
                logger.warning("%s: %s; attempt %d in %.1f s", self.destination, reason, self.failures + 1, delay)
                return delay
        self.failures = 0
        self.error = ""
        self.stalled = self.parked = False
        self._on_progress()
        return None

    def _wait_for_rate(self) -> None:
        """Until what has been sent is within the limit again."""
        self._stop.wait(max(0.0, self._free_at - time.monotonic()))

    def _failed(self, reason: str, delay: float) -> None:
        self.failures += 1
        self.error = reason
        self.stalled = self.failures >= _STALLED_FAILURES or delay >= _STALLED_DELAY

    def _export(self, exporter: Exporter, request: Request) -> Outcome:
        try:
            return exporter.export(request)
        except Exception as error:
            logger.exception("exporter %s failed", self.destination)
            return Retry(f"{type(error).__name__}: {error}")

    @staticmethod
    def _delays() -> Generator[float, None, None]:
        delays = backoff.expo(base=2, factor=1, max_value=60)
        next(delays)  # the library's generators give their first value at the second call
        return delays
