"""All deliveries of one agent, to each destination of its run."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.delivery.delivery import Delivery, deliveries
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.spool import Spool
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import SettingsError
from tensormeter.logger import get_logger
from tensormeter.settings import Settings

__all__ = ["Deliveries"]

logger: Final = get_logger("tensormeter.agent")

_STOP_TIMEOUT: Final = 15.0
"""Maximum seconds to wait for a delivery's thread, which ends after its current attempt."""


class Deliveries:
    """The deliveries of one agent, started and stopped together. Only the agent's main thread may use it."""

    def __init__(self, settings: Settings, on_progress: Callable[[], None]) -> None:
        """
        Args:
            settings: Settings of the run.
            on_progress: Callback that runs after each attempt, on the delivery's thread.
        """
        self._settings = settings
        self._on_progress = on_progress
        self._deliveries: list[Delivery] = []
        self._noted: list[Delivery] = []
        self._without_exporter: dict[str, str] = {}
        """Reasons why destinations have no exporter, by destination."""

    def start(self, spool: Spool, numbering: Numbering) -> None:
        """Start delivering from a spool, unless the run is offline."""
        if self._settings.mode != "online":
            return
        self._deliveries = []
        for destination in self._settings.exporters:
            try:
                self._deliveries += deliveries((destination,), spool.path, self._settings, self._on_progress, numbering)
            except SettingsError as error:  # the other destinations continue
                logger.error("%s", error)
                self._without_exporter[destination] = str(error)
        for delivery in self._deliveries:
            delivery.start()

    def stop(self) -> None:
        for delivery in self._deliveries:
            delivery.stop(_STOP_TIMEOUT)

    def check(self) -> None:
        """Raise an error if a delivery has found damage in the spool.

        Raises:
            SpoolDamagedError: The spool is damaged.
        """
        for delivery in self._deliveries:
            if delivery.damaged:
                raise SpoolDamagedError(delivery.error)

    def wake(self) -> None:
        """Retry all deliveries immediately."""
        for delivery in self._deliveries:
            delivery.wake()

    def arrived(self) -> None:
        """Notify all deliveries that the spool has new requests."""
        self.note_arrivals(SIGNALS)
        self.wake_noted()

    def note_arrivals(self, signals: Iterable[Signal]) -> None:
        """Record that the spool has new requests with these signals. `wake_noted` must follow.

        Each delivery waits for earlier requests of its siblings, so arrivals are recorded before any delivery wakes.
        """
        for delivery in self._deliveries:
            if any(signal in delivery.signals for signal in signals):
                delivery.note_arrival()
                self._noted.append(delivery)

    def wake_noted(self) -> None:
        """Wake the deliveries for which `note_arrivals` has recorded requests."""
        while self._noted:
            self._noted.pop().wake_if_working()

    def set_urgent(self, urgent: bool) -> None:
        """Set whether a process is waiting for everything to become durable."""
        for delivery in self._deliveries:
            delivery.set_urgent(urgent)

    def working(self, signal: Signal) -> list[str]:
        """Return the destinations to which a signal is being delivered without failures."""
        return [
            delivery.destination
            for delivery in self._deliveries
            if not delivery.failures and signal in delivery.signals
        ]

    @property
    def live_interval(self) -> float | None:
        """Seconds between two requests while the run has viewers; None if it has none."""
        intervals = [interval for delivery in self._deliveries if (interval := delivery.live_interval) is not None]
        return min(intervals, default=None)

    @property
    def keep_up(self) -> bool:
        """Whether each delivery has sent everything, or cannot send anything."""
        return all(delivery.idle or delivery.failures for delivery in self._deliveries)

    @property
    def are_idle(self) -> bool:
        """Whether the queues of all destinations are empty."""
        return all(delivery.idle for delivery in self._deliveries)

    @property
    def are_idle_or_parked(self) -> bool:
        """Whether each delivery is idle or parked, so that nothing can be delivered until credentials change."""
        return all(delivery.parked or delivery.idle for delivery in self._deliveries)

    @property
    def rest(self) -> bool:
        """Whether no delivery can make progress now: each one is idle, stalled or hanging."""
        return all(delivery.idle or delivery.stalled or delivery.hangs for delivery in self._deliveries)

    @property
    def stalled(self) -> bool:
        """Whether waiting is pointless, because the destinations of all remaining requests do not accept them now."""
        return any(delivery.stalled or delivery.hangs for delivery in self._deliveries) and self.rest

    @property
    def logs_fail(self) -> bool:
        """Whether a destination receives only metrics, because delivery of its log records fails."""
        return any(delivery.failures and delivery.signals == ("logs",) for delivery in self._deliveries)

    @property
    def refusals(self) -> list[tuple[float, Exception]]:
        """Current spool failures of the deliveries, as (start time, error)."""
        return [delivery.refusal for delivery in self._deliveries if delivery.refusal]

    @property
    def refused(self) -> list[str]:
        """Messages about items that receivers refused."""
        return [f"{delivery} refused {delivery.refused}" for delivery in self._deliveries if delivery.refused]

    @property
    def unreachable(self) -> tuple[str, ...]:
        return tuple(delivery.destination for delivery in self._deliveries if delivery.stalled and not delivery.parked)

    @property
    def trouble(self) -> str:
        """Reasons why destinations are not receiving their requests; empty if there are none."""
        reasons = [f"{delivery}: {delivery.trouble}" for delivery in self._deliveries if delivery.trouble]
        return "; ".join([*reasons, *(f"{name}: {reason}" for name, reason in self._without_exporter.items())])

    def explain(self, spool: Spool, path: Path) -> str:
        """Return the reasons why requests are waiting, for each destination.

        Args:
            spool: Spool of the run.
            path: Directory of the run, for the suggested commands.
        """
        words = []
        for name, items in spool.waiting_items().items():
            troubles = [
                delivery.trouble for delivery in self._deliveries if delivery.destination == name and delivery.trouble
            ]
            reason = "; ".join(dict.fromkeys(troubles)) or self._without_exporter.get(name, "")
            if name not in self._settings.exporters:
                reason = (
                    f"the run's last settings do not include this destination; to send its data, run "
                    f"`TENSORMETER_EXPORTERS={name} tensormeter sync {path}` with its options in the environment; to "
                    f"delete the data, run `tensormeter spool purge {path.name}`"
                )
            words.append(f"{name}: {reason or 'not delivered yet'} ({items} items waiting)")
        return "; ".join(words) or self.trouble
