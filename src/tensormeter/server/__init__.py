"""The experiment server: an OTLP/HTTP receiver, a store, and a JSON API to query it.

Needs the extra `server` (starlette, uvicorn, zstandard).
"""

from tensormeter.server.alerts import AlertConfig, load_alert_config
from tensormeter.server.config import ServerConfig
from tensormeter.server.http.logs import configure_logs
from tensormeter.server.run_server import serve

__all__ = ["AlertConfig", "ServerConfig", "configure_logs", "load_alert_config", "serve"]
