"""The tensormeter server: OTLP/HTTP receivers, a store, alerts, and a JSON API for queries.

It requires the extra `server` (starlette, uvicorn, zstandard).
"""

from tensormeter.server.alerts import AlertConfig, load_alert_config
from tensormeter.server.config import ServerConfig
from tensormeter.server.http.logs import configure_logs
from tensormeter.server.run_server import serve

__all__ = ["AlertConfig", "ServerConfig", "configure_logs", "load_alert_config", "serve"]
