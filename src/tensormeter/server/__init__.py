"""The experiment server: an OTLP/HTTP receiver, a store, and a JSON API to query it.

Needs the extra `server` (starlette, uvicorn, zstandard).
"""

from tensormeter.server.config import ServerConfig
from tensormeter.server.serving import serve

__all__ = ["ServerConfig", "serve"]
