"""Delivery status, which the agent writes into the rings for the run's processes."""

import time
from collections.abc import Callable
from typing import Final

from tensormeter.agent.delivery.deliveries import Deliveries
from tensormeter.agent.ingest.rings import Rings
from tensormeter.agent.leftovers import describe_rejections
from tensormeter.agent.spool.spool import Spool
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.ring.format import HeaderWord, SpoolLoss

__all__ = ["StatusPublisher"]

_INTERVAL: Final = 0.25
"""Minimum seconds between two calls to `on_status`."""


class StatusPublisher:
    """Publisher of the delivery status. Only the agent's main thread may use it."""

    def __init__(self, rings: Rings, deliveries: Deliveries, on_status: Callable[[int], None] | None) -> None:
        """
        Args:
            rings: Rings of the run.
            deliveries: Deliveries of the run.
            on_status: Callback that periodically receives the number of undelivered items.
        """
        self._rings = rings
        self._deliveries = deliveries
        self._on_status = on_status
        self._rejections = 0, ""
        """Number of rejected items and their description."""
        self._status_at = 0.0

    def publish(self, spool: Spool, disk_report: str) -> None:
        """Write the current status.

        Args:
            spool: Spool of the run.
            disk_report: Description of a disk problem for users; empty if there is none.
        """
        pending = spool.pending()
        # A flush mainly concerns metrics, so it succeeds if a receiver accepts metrics but refuses log records.
        signals: tuple[Signal, ...] = ("metrics",) if self._deliveries.logs_fail else SIGNALS
        flushed = {drain: number for drain in self._rings if (number := drain.complete_flush(signals)) is not None}
        # Read the rejected items after `pending`, and publish them first. Otherwise, a process could see that no
        # request is pending before it sees that items were rejected.
        rejected = spool.quarantined_items()
        losses = spool.losses()
        stalled = self._deliveries.stalled or 0 < pending == spool.elsewhere
        trouble = self._deliveries.trouble
        refused = self._deliveries.refused
        if rejected != self._rejections[0]:
            self._rejections = rejected, describe_rejections(spool.rejections())
        for drain in self._rings:
            words = drain.ring.words
            words[HeaderWord.QUARANTINED_ITEMS] = rejected
            words[HeaderWord.SETTLED_ATTEMPT] = drain.settled_attempt
            for reason in SpoolLoss:
                words[HeaderWord.SPOOL_LOSSES + reason] = losses.get(reason.name.lower(), 0)
            drain.ring.report(trouble, self._rejections[1], "; ".join(filter(None, [drain.lost, *refused])))
            drain.ring.report_disk(disk_report)
            words[HeaderWord.PENDING_REQUESTS] = pending
            if drain in flushed:  # before STALLED: a process that sees the latter checks again whether it is flushed
                words[HeaderWord.FLUSHED] = flushed[drain]
            words[HeaderWord.STALLED] = stalled
        now = time.monotonic()
        if self._on_status and now - self._status_at >= _INTERVAL:
            self._status_at = now
            self._on_status(spool.pending_items())
