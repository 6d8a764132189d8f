"""What senders are told about loss of power: headers of answers, and GET /api/v1/durable.

A sender that names its batches (`Tensormeter-Batch-Id`) gets with each acceptance the number of its commit and the number up to
which everything is durable, each as ``EPOCH-NUMBER``. It keeps what is accepted until it is durable, and sends it again if the
epoch has changed. Without these headers nothing is known, and a sender keeps nothing.
"""

from collections.abc import Mapping
from typing import Final

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.http.errors import DURABLE_PATH
from tensormeter.server.store import Store

__all__ = ["COMMIT_HEADER", "DURABLE_HEADER", "DurableApi", "durability_headers"]

COMMIT_HEADER: Final = "Tensormeter-Commit"
DURABLE_HEADER: Final = "Tensormeter-Durable"

_THREADS: Final = 16
_LONGEST_SYNC: Final = 2.0
"""Seconds for which an answer waits for the disk. A slower one is asked again."""


def durability_headers(store: Store) -> Mapping[str, str]:
    """Headers of the answer to a request whose content the store has just committed; none if the store does not know."""
    progress = None if store.syncer is None else store.syncer.progress()
    if progress is None:
        return {}
    return {
        COMMIT_HEADER: f"{progress.epoch}-{progress.committed}",
        DURABLE_HEADER: f"{progress.epoch}-{progress.durable}",
    }


class DurableApi:
    """The handler of `DURABLE_PATH`: syncs now, and answers how far that went. Many requests at once share one sync."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._threads = anyio.CapacityLimiter(_THREADS)

    def routes(self) -> list[Route]:
        """Where the handler goes."""
        return [Route(DURABLE_PATH, self.durable, methods=["GET"])]

    async def durable(self, request: Request) -> Response:
        """Everything is null if the store does not know."""
        syncer = self._stores.of(request).syncer
        progress = None
        if syncer is not None:
            progress = await anyio.to_thread.run_sync(syncer.sync, _LONGEST_SYNC, limiter=self._threads)
        if progress is None:
            return JSONResponse({"epoch": None, "committed": None, "durable": None})
        return JSONResponse(
            {"epoch": progress.epoch, "committed": progress.committed, "durable": progress.durable},
            headers={"Cache-Control": "no-store"},
        )
