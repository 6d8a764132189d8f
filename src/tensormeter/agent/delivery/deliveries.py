"""The deliveries of one agent to all destinations of its run."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.agent.delivery.delivery import Delivery, deliveries
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.spool import Spool
from tensormeter.environment.signals import Signal
from tensormeter.errors import SettingsError
from tensormeter.logger import get_logger
from tensormeter.settings import Settings

__all__ = ["Deliveries"]

logger: Final = get_logger("tensormeter.agent")

_STOP_TIMEOUT: Final = 15.0
"""Maximum seconds to wait for the thread of a delivery, which ends after its present attempt."""


class Deliveries:
    """Starts and stops the deliveries and sums up their states. Used by the agent's main thread."""

    def __init__(self, settings: Settings, on_progress: Callable[[], None]) -> None:
        """
        Args:
            settings: Settings of the run.
            on_progress: Callback after each attempt, on the thread of the delivery.
        """
        self._settings = settings
        self._on_progress = on_progress
        self._deliveries: list[Delivery] = []
        self._without_exporter: dict[str, str] = {}
        """Reasons why destinations have no exporter, by name."""

    def start(self, spool: Spool, numbering: Numbering) -> None:
        """Deliver from a spool; offline runs are not delivered."""
        if self._settings.mode != "online":
            return
        self._deliveries = []
        for destination in self._settings.exporters:
            try:
                self._deliveries += deliveries((destination,), spool.path, self._settings, self._on_progress, numbering)
            except SettingsError as error:  # the other destinations go on
                logger.error("%s", error)
                self._without_exporter[destination] = str(error)
        for delivery in self._deliveries:
            delivery.start()

    def stop(self) -> None:
        for delivery in self._deliveries:
            delivery.stop(_STOP_TIMEOUT)

    def check(self) -> None:
        """Raise what a delivery has detected about the spool.

        Raises:
            SpoolDamagedError: The spool is damaged.
        """
        for delivery in self._deliveries:
            if delivery.damaged:
                raise SpoolDamagedError(delivery.error)

    def wake(self) -> None:
        """Retry at once."""
        for delivery in self._deliveries:
            delivery.wake()

    def arrived(self) -> None:
        """Note that requests have come into the spool."""
        for delivery in self._deliveries:
            delivery.arrived()

    def set_urgent(self, urgent: bool) -> None:
        """Set whether a process waits for everything to be durable."""
        for delivery in self._deliveries:
            delivery.set_urgent(urgent)

    def working(self, signal: Signal) -> list[str]:
        """Destinations to which delivery of a signal works."""
        return [
            delivery.destination
            for delivery in self._deliveries
            if not delivery.failures and signal in delivery.signals
        ]

    @property
    def are_idle(self) -> bool:
        """Whether the queues of all destinations are empty."""
        return all(delivery.idle for delivery in self._deliveries)

    @property
    def are_idle_or_parked(self) -> bool:
        """Whether nothing can be delivered before there is another token."""
        return all(delivery.parked or delivery.idle for delivery in self._deliveries)

    @property
    def rest(self) -> bool:
        """Whether each delivery has nothing to do, or nothing that can be done now."""
        return all(delivery.idle or delivery.stalled or delivery.hangs for delivery in self._deliveries)

    @property
    def stalled(self) -> bool:
        """Whether waiting makes no sense: all requests that are left are for destinations that cannot be reached."""
        return any(delivery.stalled or delivery.hangs for delivery in self._deliveries) and self.rest

    @property
    def logs_fail(self) -> bool:
        """Whether a destination accepts metrics alone, because delivery of log records fails."""
        return any(delivery.failures and delivery.signals == ("logs",) for delivery in self._deliveries)

    @property
    def refusals(self) -> list[tuple[float, Exception]]:
        """Times since which the spool refuses deliveries, and its errors."""
        return [delivery.refusal for delivery in self._deliveries if delivery.refusal]

    @property
    def refused(self) -> list[str]:
        """Messages about items that receivers have left out."""
        return [f"{delivery} refused {delivery.refused}" for delivery in self._deliveries if delivery.refused]

    @property
    def unreachable(self) -> tuple[str, ...]:
        """Destinations that cannot be reached."""
        return tuple(delivery.destination for delivery in self._deliveries if delivery.stalled and not delivery.parked)

    @property
    def trouble(self) -> str:
        """Reasons why destinations do not get their requests; "" if there are none."""
        reasons = [f"{delivery}: {delivery.trouble}" for delivery in self._deliveries if delivery.trouble]
        return "; ".join([*reasons, *(f"{name}: {reason}" for name, reason in self._without_exporter.items())])

    def explain(self, spool: Spool, path: Path) -> str:
        """Reasons why requests wait, for each destination.

        Args:
            spool: The spool.
            path: The run's directory, for commands to run.
        """
        words = []
        for name, items in spool.waiting_items().items():
            troubles = [
                delivery.trouble for delivery in self._deliveries if delivery.destination == name and delivery.trouble
            ]
            reason = "; ".join(dict.fromkeys(troubles)) or self._without_exporter.get(name, "")
            if name not in self._settings.exporters:
                reason = (
                    f"the run's last settings do not name it; `TENSORMETER_EXPORTERS={name} tensormeter sync {path}` sends it, with "
                    f"options from the environment; `tensormeter spool purge {path.name}` deletes it"
                )
            words.append(f"{name}: {reason or 'not delivered yet'} ({items} items wait)")
        return "; ".join(words) or self.trouble
