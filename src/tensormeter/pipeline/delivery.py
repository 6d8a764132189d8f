"""Delivery: one thread for each destination, from the spool to the receiver.

Each destination has its own thread, its own backoff and its own place in the spool, so a bad one holds up nobody else.
Requests go out in order, one at a time.
Waiting between attempts doubles from 1 to 60 seconds with full jitter (`backoff.expo`, `backoff.full_jitter`; see "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015); a `Retry-After` is a floor under it, up to an hour.
There is no limit on attempts while the agent lives; what it leaves stays in the spool.
"""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Final

import backoff

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
from tensormeter.pipeline.spool import Spool
from tensormeter.settings import Settings

__all__ = ["Delivery"]

logger: Final = logging.getLogger("tensormeter.agent")

_LONGEST_RETRY_AFTER: Final = 3600.0
_TROUBLE_DELAY: Final = 1.0
_STALLED_FAILURES: Final = 3
_STALLED_DELAY: Final = 10.0
_UNAUTHORIZED_DELAY: Final = 60.0


class Delivery:
    """Delivers the requests of one destination.

    Attributes:
        failures: Attempts that have failed since the last success.
        error: What the last of them said.
        stalled: Whether it makes no sense to wait for this destination: several attempts have failed, or the next one is
            far away.
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
        self._destination = destination
        self._spool = spool
        self._config = ExporterConfig(
            endpoint=settings.endpoint,
            token=settings.token,
            timeout=settings.export_timeout,
            destination=destination,
            options=settings.options_of(destination),
            state=spool.with_name("exporters") / destination,
        )
        self._exporter_type = load_exporter(destination)
        self._on_progress = on_progress
        self._jitter = jitter
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tensormeter-deliver-{destination}", daemon=True)
        self.failures = 0
        self.error = ""
        self.stalled = False

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something new, or a reason to try again at once. Any thread, any number of times."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread, after the attempt that is under way. Blocks up to `timeout` seconds."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(Spool(self._spool)) as spool:
                    exporter = self._exporter_type(self._config)
                    try:
                        self._deliver(spool, exporter)
                    finally:
                        exporter.shutdown()
            except Exception as error:  # an exporter that cannot be constructed, or a disk that refuses
                if not self.failures:
                    logger.exception("delivery to %s failed", self._destination)
                self._failed(f"{type(error).__name__}: {error}", _TROUBLE_DELAY)
                self._on_progress()
                self._stop.wait(_TROUBLE_DELAY)

    def _deliver(self, spool: Spool, exporter: Exporter) -> None:
        delays = self._delays()
        while not self._stop.is_set():
            delay = self._deliver_next(spool, exporter, delays)
            if delay is None:
                delays = self._delays()
                continue
            self._on_progress()
            self._wake.wait(delay or None)
            self._wake.clear()

    def _deliver_next(self, spool: Spool, exporter: Exporter, delays: Generator[float, None, None]) -> float | None:
        """Make one attempt.

        Returns:
            None to go on at once, 0 to wait for something new, or the seconds to wait before the next attempt.
        """
        found = spool.next(self._destination)
        if found is None:
            return 0.0
        sequence, request = found
        outcome = self._export(exporter, request)
        if isinstance(outcome, Unauthorized):
            outcome = Retry(outcome.reason, _UNAUTHORIZED_DELAY)
        match outcome:
            case Accepted(rejected, message):
                spool.done(self._destination, sequence)
                if rejected:
                    logger.error("%s refused %d items of %r: %s", self._destination, rejected, request, message)
            case Rejected(reason) | TooLarge(reason):
                spool.quarantine(self._destination, sequence, reason)
                logger.error("%s rejected %r, which is set aside in the spool: %s", self._destination, request, reason)
            case Retry(reason, after):
                delay = max(self._jitter(next(delays)), min(after or 0.0, _LONGEST_RETRY_AFTER), 0.001)
                self._failed(reason, delay)
                logger.warning("%s: %s; attempt %d in %.1f s", self._destination, reason, self.failures + 1, delay)
                return delay
        self.failures = 0
        self.error = ""
        self.stalled = False
        self._on_progress()
        return None

    def _failed(self, reason: str, delay: float) -> None:
        self.failures += 1
        self.error = reason
        self.stalled = self.failures >= _STALLED_FAILURES or delay >= _STALLED_DELAY

    def _export(self, exporter: Exporter, request: Request) -> Outcome:
        try:
            return exporter.export(request)
        except Exception as error:
            logger.exception("exporter %s failed", self._destination)
            return Retry(f"{type(error).__name__}: {error}")

    @staticmethod
    def _delays() -> Generator[float, None, None]:
        delays = backoff.expo(base=2, factor=1, max_value=60)
        next(delays)  # the library's generators give their first value at the second call
        return delays
