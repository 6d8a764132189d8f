"""Alerts: the server checks new points against rules, stores alerts as events of their run, and sends them to webhooks."""

from tensormeter.server.alerts.config import AlertConfig, load_alert_config
from tensormeter.server.alerts.service import AlertService

__all__ = ["AlertConfig", "AlertService", "load_alert_config"]
