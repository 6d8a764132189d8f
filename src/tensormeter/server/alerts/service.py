"""The alerts of a server: a watcher on a thread, and a thread for each webhook."""

from tensormeter.server.alerts.config import AlertConfig
from tensormeter.server.alerts.watcher import Watcher
from tensormeter.server.alerts.webhook import Webhook
from tensormeter.server.store import Store
from tensormeter.server.store.background import Background

__all__ = ["AlertService"]


class AlertService:
    """Runs from construction until `stop`, which must come before the store is closed."""

    def __init__(self, store: Store, config: AlertConfig, interval: float = 5.0) -> None:
        """Start the threads.

        Args:
            store: What to look at.
            config: Rules and webhooks.
            interval: Seconds between two looks.
        """
        self._watching = Background("tensormeter-alerts", Watcher(store, config.rules).look, interval)
        self._webhooks = [Webhook(store, url) for url in config.webhooks]

    def stop(self) -> None:
        """Return when all threads have ended."""
        self._watching.stop()
        for webhook in self._webhooks:
            webhook.stop()
