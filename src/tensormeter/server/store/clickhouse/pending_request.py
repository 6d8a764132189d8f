"""A request that waits to be committed."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tensormeter.otlp.batch import Attribute, Event
from tensormeter.server.store.models.runs import Receipt
from tensormeter.server.store.rules.ingest_blocks import BlockArrival
from tensormeter.server.store.rules.ingest_lines import LineArrival
from tensormeter.server.store.rules.ingest_series import Arrival, Rejections

__all__ = ["Request", "Resources"]

Resources = Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]]


@dataclass(eq=False)
class Request:
    """A request and, once `done` is set, its receipt or error.

    Attributes:
        digest: SHA-256 digest of signal and payload, 32 bytes.
        received: Time of arrival on this server's clock, in nanoseconds since the Unix epoch.
        noun: Noun for one item of the request in the receipt's message, such as "data point".
        gaps: Gaps as returned by `gaps_of`.
        resources: Log records by resource; those without an event name are ignored.
        lines: Log records without an event name.
    """

    digest: bytes
    batch_id: str | None
    received: int
    noun: str
    arrivals: Sequence[Arrival] = ()
    blocks: Sequence[BlockArrival] = ()
    gaps: Sequence[Arrival] = ()
    resources: Resources = ()
    lines: Sequence[LineArrival] = ()
    rejections: Rejections = field(default_factory=Rejections)
    receipt: Receipt | None = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def settle(self, outcome: Receipt | Exception) -> None:
        """Set the receipt or the error, and release the waiting thread."""
        if isinstance(outcome, Exception):
            self.error = outcome
        else:
            self.receipt = outcome
        self.done.set()

    def answer(self) -> Receipt:
        """Return the receipt, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.receipt is not None
        return self.receipt
