"""Durability reports to senders, in response headers and at GET /api/v1/durable.

If a request has the header `Tensormeter-Batch-Id`, the response has two additional headers, each in the form
``EPOCH-NUMBER``. `Tensormeter-Commit` contains the number of the last commit, which covers the request.
`Tensormeter-Durable` contains the number up to which all commits are durable. The sender keeps an accepted request until
its commit is durable, and resends the request if the epoch changes. Without these response headers, durability is
unknown, and the sender does not keep accepted requests.
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
"""Maximum seconds for which a response waits for the disk. If the sync takes longer, the sender has to ask again."""


def durability_headers(store: Store) -> Mapping[str, str]:
    """Return the durability headers for the response to a request that was just committed.

    The result is empty if the store does not report durability.
    """
    progress = None if store.syncer is None else store.syncer.progress()
    if progress is None:
        return {}
    return {
        COMMIT_HEADER: f"{progress.epoch}-{progress.committed}",
        DURABLE_HEADER: f"{progress.epoch}-{progress.durable}",
    }


class DurableApi:
    """Handler of `DURABLE_PATH`. Concurrent requests share one sync."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._threads = anyio.CapacityLimiter(_THREADS)

    def routes(self) -> list[Route]:
        """Return the handler's route."""
        return [Route(DURABLE_PATH, self.durable, methods=["GET"])]

    async def durable(self, request: Request) -> Response:
        """Sync to disk, and report which commits are durable. All values are null if the store reports no durability."""
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
