"""The query API: JSON under /api/v1/, as docs/api.md says.

Every answer is valid JSON: NaN and the infinities are the strings "NaN", "Infinity" and "-Infinity".
"""

from starlette.routing import Route

from tensormeter.server.api.openapi import describe_api
from tensormeter.server.api.points import PointsApi
from tensormeter.server.api.request import ApiThreads
from tensormeter.server.api.runs import RunsApi
from tensormeter.server.api.stream import Shutdown, StreamApi
from tensormeter.server.store import Store

__all__ = ["Shutdown", "api_routes"]


def api_routes(store: Store, shutdown: Shutdown) -> list[Route]:
    """All routes of the API over a store. All work happens on worker threads of its own."""
    threads = ApiThreads()
    return [
        Route("/api/v1/openapi.json", describe_api),
        *RunsApi(store, threads).routes(),
        *PointsApi(store, threads).routes(),
        *StreamApi(store, threads, shutdown).routes(),
    ]
