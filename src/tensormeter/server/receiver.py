"""The OTLP/HTTP receiver: POST /v1/metrics and POST /v1/logs (OTLP specification 1.x, OTLP/HTTP, binary protobuf)."""

from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.server.body import BodyReader, decompress
from tensormeter.server.status import PROTOBUF
from tensormeter.server.store import Store

__all__ = ["Receiver"]

BATCH_ID_HEADER: Final = "Tensormeter-Batch-Id"
MAX_BATCH_ID: Final = 200

_THREADS: Final = 4
"""Requests that are decoded at once: each may take several times the size limit in memory."""


class Receiver:
    """Handlers of the two signals. Bodies are read on the event loop; everything else happens on worker threads."""

    def __init__(self, store: Store, max_body_bytes: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes
        self._bodies = BodyReader(max_body_bytes)
        # Its own, so that slow queries cannot take every thread.
        self._threads = anyio.CapacityLimiter(_THREADS)

    def routes(self) -> list[Route]:
        """Where the handlers go."""
        return [
            Route("/v1/metrics", self.metrics, methods=["POST"]),
            Route("/v1/logs", self.logs, methods=["POST"]),
        ]

    async def metrics(self, request: Request) -> Response:
        """Store an `ExportMetricsServiceRequest`."""
        return await self._receive(request, self._store_metrics)

    async def logs(self, request: Request) -> Response:
        """Store an `ExportLogsServiceRequest`."""
        return await self._receive(request, self._store_logs)

    async def _receive(self, request: Request, store: Callable[[bytes, str | None], bytes]) -> Response:
        gzipped = _check_headers(request)
        batch_id = request.headers.get(BATCH_ID_HEADER) or None
        if batch_id is not None and len(batch_id) > MAX_BATCH_ID:
            raise HTTPException(400, f"{BATCH_ID_HEADER} is longer than {MAX_BATCH_ID} characters")
        body = await self._bodies.read(request)

        def work() -> bytes:
            return store(decompress(body, self._max_body_bytes) if gzipped else body, batch_id)

        try:
            answer = await anyio.to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._bodies.release(body)
        return Response(answer, media_type=PROTOBUF)

    def _store_metrics(self, payload: bytes, batch_id: str | None) -> bytes:
        receipt = self._store.append_metrics(decode_metrics(payload), payload=payload, batch_id=batch_id)
        response = ExportMetricsServiceResponse()
        if receipt.rejected:
            response.partial_success.CopyFrom(
                ExportMetricsPartialSuccess(rejected_data_points=receipt.rejected, error_message=receipt.message),
            )
        return response.SerializeToString()

    def _store_logs(self, payload: bytes, batch_id: str | None) -> bytes:
        receipt = self._store.append_events(decode_events(payload), payload=payload, batch_id=batch_id)
        response = ExportLogsServiceResponse()
        if receipt.rejected:
            response.partial_success.CopyFrom(
                ExportLogsPartialSuccess(rejected_log_records=receipt.rejected, error_message=receipt.message),
            )
        return response.SerializeToString()


def _check_headers(request: Request) -> bool:
    """Whether the body is gzip.

    Raises:
        HTTPException: 415 the type or encoding is not one that is understood.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != PROTOBUF:
        hint = "JSON is not supported yet, " if media_type == "application/json" else ""
        raise HTTPException(415, f"{hint}expected Content-Type {PROTOBUF}, got {media_type!r}")
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise HTTPException(415, f"expected Content-Encoding gzip or identity, got {encoding!r}")
    return encoding == "gzip"
