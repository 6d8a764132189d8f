"""Delivery of the requests of an import to a server, in order, with retries."""

import gzip
import hashlib
import queue
import sys
import threading
from typing import Final, Protocol

from tensormeter.errors import TensormeterError
from tensormeter.exporter import (
    Accepted,
    Durability,
    Exporter,
    ExporterConfig,
    Outcome,
    Rejected,
    Request,
    Retry,
    Signal,
    TooLarge,
    load_exporter,
)
from tensormeter.importers.tally import Tally
from tensormeter.otlp.halving import halve
from tensormeter.retrying import exponential_delays, retry_delay
from tensormeter.settings import Settings

__all__ = ["NullSender", "Sender", "ServerSender"]

_ATTEMPTS: Final = 6
_LONGEST_RETRY_AFTER: Final = 60.0
_QUEUED: Final = 2
"""Maximum number of requests that wait while one is sent. A request has some megabytes."""


class Sender(Protocol):
    """A destination of requests."""

    def send(self, signal: Signal, body: bytes, items: int) -> None:
        """Send one request.

        Args:
            signal: Signal of the request.
            body: Protobuf message, uncompressed.
            items: Number of data points or log records.

        Raises:
            TensormeterError: This request or an earlier one could not be sent.
        """
        ...

    def flush(self) -> None:
        """Wait until all requests are stored.

        Raises:
            TensormeterError: A request could not be sent.
        """
        ...

    def close(self) -> None:
        """Release connections, and drop requests that have not been sent. Call `flush` first to keep them."""
        ...


class NullSender:
    """A sender that drops all requests, for `--dry-run`."""

    def send(self, signal: Signal, body: bytes, items: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class ServerSender:
    """A sender to the server of the settings. A thread compresses and sends, while the caller reads on.

    The ID of a request is the digest of its contents, so a server skips requests that it has already stored. `send` blocks
    while two requests are queued.
    """

    def __init__(self, settings: Settings, tally: Tally) -> None:
        """
        Args:
            settings: Settings with endpoint, token and timeout.
            tally: Counts of the import, which receive items that the server refuses.
        """
        self._exporter: Exporter = load_exporter("experiment")(
            ExporterConfig(
                endpoint=settings.endpoint,
                token=settings.token,
                timeout=settings.export_timeout,
                destination="experiment",
            )
        )
        self._tally = tally
        self._queue: queue.Queue[tuple[Signal, bytes, int] | None] = queue.Queue(_QUEUED)
        self._fault: BaseException | None = None
        self._stop = threading.Event()
        self._durability: Durability | None = None
        self._restarted = False
        self._too_large = sys.maxsize  # size of the smallest compressed body that was refused for its size
        self._thread: threading.Thread | None = None

    def send(self, signal: Signal, body: bytes, items: int) -> None:
        """Queue one request. See `Sender`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tensormeter-import", daemon=True)
            self._thread.start()
        self._check()
        self._queue.put((signal, body, items))

    def flush(self) -> None:
        """Wait until the server has stored all requests, and has synced them to its disk if it reports that."""
        self._queue.join()
        self._check()
        ask = getattr(self._exporter, "durability", None)
        if self._durability is None or ask is None:
            return
        durability = ask()
        if isinstance(durability, Durability):
            self._note(durability)
        if self._restarted:
            raise TensormeterError(
                "the server restarted during the import and may have lost data; run the same command again"
            )

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            while self._thread.is_alive():
                try:
                    self._queue.put(None, timeout=0.1)
                    break
                except queue.Full:
                    continue
            self._thread.join()
        self._exporter.shutdown()

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                if self._fault is None and not self._stop.is_set():
                    self._deliver(*entry)
            except BaseException as error:  # the caller's thread raises it
                self._fault = error
            finally:
                self._queue.task_done()

    def _deliver(self, signal: Signal, body: bytes, items: int) -> None:
        compressed = gzip.compress(body, 1, mtime=0)
        if len(compressed) >= self._too_large and self._deliver_halves(signal, body):
            return
        digest = hashlib.sha256(signal.encode() + body).hexdigest()[:32]
        request = Request(f"import-{digest}", signal, compressed, items)
        match self._export(request):
            case Accepted(rejected, message, durability):
                self._note(durability)
                self._refuse(rejected, message)
            case Rejected(reason):
                self._refuse(items, reason)
            case TooLarge(reason):
                self._too_large = min(self._too_large, len(compressed))
                if not self._deliver_halves(signal, body):
                    self._refuse(items, reason)
            case outcome:
                raise TensormeterError(
                    f"{outcome.reason}; check that the server of the endpoint runs (`tensormeter serve`), and run the same "
                    "command again to continue"
                )

    def _deliver_halves(self, signal: Signal, body: bytes) -> bool:
        """Send a request in two parts, and return whether it has more than one item."""
        pair = halve(signal, body)
        for half in pair or ():
            self._deliver(signal, half.message.SerializeToString(), half.items)
        return pair is not None

    def _export(self, request: Request) -> Outcome:
        delays = exponential_delays(0.5, _LONGEST_RETRY_AFTER)
        for _ in range(_ATTEMPTS - 1):
            outcome = self._exporter.export(request)
            if not isinstance(outcome, Retry):
                return outcome
            wait = retry_delay(next(delays), outcome.after, at_most=_LONGEST_RETRY_AFTER)
            if self._stop.wait(wait):
                return outcome
        return self._exporter.export(request)

    def _note(self, durability: Durability | None) -> None:
        if durability is not None and self._durability is not None and durability.epoch != self._durability.epoch:
            self._restarted = self._restarted or self._durability.durable < self._durability.number
        self._durability = durability or self._durability

    def _refuse(self, items: int, reason: str) -> None:
        if items:
            self._tally.leave_out("items that the server refused", items)
            self._tally.report(f"the server refused {items:,} items: {reason}")
