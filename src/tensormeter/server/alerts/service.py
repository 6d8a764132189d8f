"""The alert service of a server: one thread for the watcher and one for each webhook."""

from tensormeter.server.alerts.config import AlertConfig
from tensormeter.server.alerts.watcher import Watcher
from tensormeter.server.alerts.webhook import Webhook
from tensormeter.server.store import Store
from tensormeter.server.store.background import Background

__all__ = ["AlertService"]


class AlertService:
    """Service that watches a store from construction until `stop`. Call `stop` before the store is closed."""

    def __init__(self, store: Store, config: AlertConfig, interval: float = 5.0) -> None:
        """Start the threads.

        Args:
            store: Store to watch.
            config: Rules and webhooks.
            interval: Interval between checks in seconds.
        """
        self._watcher = Watcher(store, config.rules)
        self._checks = Background("tensormeter-alerts", self._watcher.check, interval)
        self._webhooks = [Webhook(store, url) for url in config.webhooks]

    def stop(self) -> None:
        """Stop all threads and wait for them. A check of new points does not continue."""
        self._watcher.stop()
        self._checks.stop()
        for webhook in self._webhooks:
            webhook.stop()
