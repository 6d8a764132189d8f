"""The OTLP/HTTP receiver: POST /v1/metrics and POST /v1/logs, in Protobuf and JSON (OTLP specification 1.x)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
from google.protobuf import json_format
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.otlp.batch import Attribute
from tensormeter.otlp.check import Check
from tensormeter.otlp.content_codings import ACCEPT_ENCODING, CODINGS
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.elements import check_logs, check_metrics
from tensormeter.otlp.json import events_from_json, metrics_from_json
from tensormeter.otlp.number_blocks import decode_blocks
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.durability import durability_headers
from tensormeter.server.http.errors import JSON, PROTOBUF
from tensormeter.server.http.request_hooks import Ingested, Listener
from tensormeter.server.limits.cpu_budget import CpuBudget, StallWatchdog, run_while_connected
from tensormeter.server.receivers.request_body import BodyReader, decompress
from tensormeter.server.store import Receipt, Store
from tensormeter.server.viewers import LIVE_HEADER, Viewers

__all__ = ["THREADS", "WAITING_THREADS", "Receiver"]

BATCH_ID_HEADER: Final = "Tensormeter-Batch-Id"
MAX_BATCH_ID: Final = 200

THREADS: Final = 4
"""Maximum number of requests that are decoded concurrently. Each may need several times `max_body_bytes` of memory."""

WAITING_THREADS: Final = 16
"""Maximum number of concurrent requests with a remote store.

This limit is higher than `THREADS`, because most threads wait for the store, which commits several requests together.
"""


_ToProtobuf = Callable[[bytes], bytes]

_Resources = Sequence[Mapping[str, Attribute]]

_Append = Callable[[Store, bytes, str | None, Check], tuple[Message, Receipt, int, _Resources]]
"""Function that stores a request and returns the response, the receipt, the number of items, and the resources."""


@dataclass(frozen=True)
class _Form:
    """Format of a body: its media type and its content encoding ("" for none)."""

    media_type: str
    encoding: str


class Receiver:
    """Handlers for metrics and logs. They read bodies on the event loop and do everything else on worker threads."""

    def __init__(
        self, stores: Stores, max_body_bytes: int, listener: Listener, viewers: Viewers, threads: int = THREADS
    ) -> None:
        """Args:
        stores: Stores that requests may write to.
        max_body_bytes: Maximum size of a body in bytes, both before and after decompression.
        listener: Listener to notify of each stored request.
        viewers: Open streams, which new data of their runs wakes.
        threads: Maximum number of requests that are decoded and stored concurrently.
        """
        self._stores = stores
        self._listener = listener
        self._viewers = viewers
        self._max_body_bytes = max_body_bytes
        self._bodies = BodyReader(max_body_bytes)
        # Receivers have their own threads, so that slow queries cannot delay the storing of data.
        self._threads = anyio.CapacityLimiter(threads)
        self._watchdog = StallWatchdog(stores.stalled)

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [
            Route("/v1/metrics", self.metrics, methods=["POST"]),
            Route("/v1/logs", self.logs, methods=["POST"]),
        ]

    async def metrics(self, request: Request) -> Response:
        """Store an `ExportMetricsServiceRequest`."""
        return await self._receive(request, _append_metrics, metrics_from_json)

    async def logs(self, request: Request) -> Response:
        """Store an `ExportLogsServiceRequest`."""
        return await self._receive(request, _append_logs, events_from_json)

    async def _receive(self, request: Request, append: _Append, to_protobuf: _ToProtobuf) -> Response:
        form = _check_headers(request)
        batch_id = request.headers.get(BATCH_ID_HEADER) or None
        if batch_id is not None and len(batch_id) > MAX_BATCH_ID:
            raise HTTPException(400, f"{BATCH_ID_HEADER} is longer than {MAX_BATCH_ID} characters")
        body = await self._bodies.read(request)
        size = len(body)
        bodies = [body]
        del body  # allows `work` to free the body once it is decompressed
        store = self._stores.of(request)

        headers: dict[str, str] = {"Accept-Encoding": ACCEPT_ENCODING}

        def work(budget: CpuBudget) -> bytes:
            payload = decompress(bodies.pop(), form.encoding, self._max_body_bytes, budget.check_now)
            if form.media_type == JSON:
                payload = to_protobuf(payload)
            response, receipt, items, resources = append(store, payload, batch_id, budget.check)
            signal = request.url.path.rpartition("/")[2]
            self._listener.ingested(Ingested(signal, items, receipt.rejected, receipt.duplicate, size))
            if (interval := self._viewers.stored(resources)) is not None:
                headers[LIVE_HEADER] = f"{interval:.3f}"
            if batch_id is not None:
                headers.update(durability_headers(store))
            if form.media_type == JSON:
                return json_format.MessageToJson(response, indent=None).encode()
            return response.SerializeToString()

        try:
            content = await run_while_connected(request, work, self._threads, watchdog=self._watchdog)
        finally:
            self._bodies.release(size)
        return Response(content, headers=headers, media_type=form.media_type)


def _append_metrics(
    store: Store, payload: bytes, batch_id: str | None, check: Check
) -> tuple[Message, Receipt, int, _Resources]:
    if store.takes_blocks:
        decoded = [decode_blocks(payload, check, check_metrics)]
    else:
        check_metrics(payload, check)
        decoded = [decode_metrics(payload, check)]
    points = sum(batch.points for batch in decoded[0])
    resources = [batch.resource for batch in decoded[0]]
    # `pop` lets the store free the batches once it has sorted their points. With many series, they are large.
    receipt = store.append_metrics(decoded.pop(), payload=payload, batch_id=batch_id, check=check)
    response = ExportMetricsServiceResponse()
    if receipt.rejected:
        response.partial_success.CopyFrom(
            ExportMetricsPartialSuccess(rejected_data_points=receipt.rejected, error_message=receipt.message),
        )
    return response, receipt, points, resources


def _append_logs(
    store: Store, payload: bytes, batch_id: str | None, check: Check
) -> tuple[Message, Receipt, int, _Resources]:
    check_logs(payload, check)
    resources = decode_events(payload, check)
    receipt = store.append_events(resources, payload=payload, batch_id=batch_id, check=check)
    response = ExportLogsServiceResponse()
    if receipt.rejected:
        response.partial_success.CopyFrom(
            ExportLogsPartialSuccess(rejected_log_records=receipt.rejected, error_message=receipt.message),
        )
    items = sum(len(events) for _, events in resources)
    return response, receipt, items, [attributes for attributes, _ in resources]


def _check_headers(request: Request) -> _Form:
    """Return the format of a request's body, as declared by its headers.

    Raises:
        HTTPException: 415 for an unsupported content type or encoding.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (PROTOBUF, JSON):
        raise HTTPException(415, f"expected Content-Type {PROTOBUF} or {JSON}, got {media_type!r}")
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", *CODINGS):
        raise HTTPException(
            415,
            f"expected Content-Encoding gzip, zstd or identity, got {encoding!r}",
            {"Accept-Encoding": ACCEPT_ENCODING},
        )
    return _Form(media_type, "" if encoding == "identity" else encoding)
