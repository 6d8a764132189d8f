"""Alerts: the server looks at what arrives, says on the run what is wrong with it, and tells webhooks."""

from tensormeter.server.alerts.config import AlertConfig, load_alert_config
from tensormeter.server.alerts.service import AlertService

__all__ = ["AlertConfig", "AlertService", "load_alert_config"]
