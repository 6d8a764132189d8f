"""The query API: JSON under /api/v1/, described in docs/api.md.

Every response is valid JSON. NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".
"""

from starlette.routing import Route

from tensormeter.server.api.attempts import AttemptsApi
from tensormeter.server.api.logs import LogsApi
from tensormeter.server.api.metrics import MetricsApi
from tensormeter.server.api.openapi import describe_api
from tensormeter.server.api.points import PointsApi
from tensormeter.server.api.runs import RunsApi
from tensormeter.server.api.stream import Shutdown, StreamApi
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.durability import DurableApi
from tensormeter.server.limits.responses import ResponseLimiter
from tensormeter.server.viewers import Viewers

__all__ = ["Shutdown", "api_routes"]


def api_routes(stores: Stores, shutdown: Shutdown, viewers: Viewers) -> list[Route]:
    """Return all API routes. The handlers run on their own threads, not on those of the OTLP receivers."""
    threads, limiter = ApiThreads(stores.stalled), ResponseLimiter()
    routes = [
        Route("/api/v1/openapi.json", describe_api),
        *RunsApi(stores, threads).routes(),
        *LogsApi(stores, threads).routes(),
        *MetricsApi(stores, threads).routes(),
        *AttemptsApi(stores, ApiThreads(stores.stalled)).routes(),  # agents wait for them before they deliver a run
        *PointsApi(stores, threads, limiter).routes(),
    ]
    bounded = [Route(route.path, limiter.bounded(route.endpoint), methods=route.methods) for route in routes]
    return [*bounded, *DurableApi(stores).routes(), *StreamApi(stores, threads, shutdown, viewers).routes()]
