"""Error responses in the format of the protocol: `google.rpc.Status` for OTLP, a JSON object for the API."""

import json
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from tensormeter.otlp.varint import encode_varint

__all__ = ["DURABLE_PATH", "JSON", "OTLP_PATHS", "PROTOBUF", "error_response"]

JSON: Final = "application/json"

PROTOBUF: Final = "application/x-protobuf"

OTLP_PATHS: Final = ("/v1/", "/v1development/")
"""Prefixes of OTLP/HTTP paths."""

DURABLE_PATH: Final = "/api/v1/durable"
"""Path where senders query the durability of their requests. The path requires the permission `write`, not `read`."""

# google.rpc.Code by HTTP status. Other statuses are UNKNOWN (2).
_RPC_CODES: Final = {
    400: 3,  # INVALID_ARGUMENT
    401: 16,  # UNAUTHENTICATED
    403: 7,  # PERMISSION_DENIED
    404: 5,  # NOT_FOUND
    405: 12,  # UNIMPLEMENTED
    408: 4,  # DEADLINE_EXCEEDED
    409: 6,  # ALREADY_EXISTS
    413: 3,
    415: 3,
    421: 3,
    500: 13,  # INTERNAL
    503: 14,  # UNAVAILABLE
}


def error_response(
    scope: Scope,
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Create an error response to a request.

    Args:
        scope: ASGI scope of the request. Its path and content type determine the format.
        status: HTTP status.
        code: Machine-readable error code, such as "not_found".
        message: Human-readable error message.
        headers: Additional response headers.
    """
    if scope["path"].startswith(OTLP_PATHS):
        if Headers(scope=scope).get("content-type", "").lower().startswith(JSON):
            document = {"code": _RPC_CODES.get(status, 2), "message": message}
            return Response(json.dumps(document), status, headers, JSON)
        return Response(_rpc_status(status, message), status, headers, PROTOBUF)
    body = json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False)
    return Response(body, status, headers, "application/json")


def _rpc_status(status: int, message: str) -> bytes:
    """Encode a `google.rpc.Status` (int32 code = 1, string message = 2), which no dependency provides."""
    text = message.encode()[:4096].decode(errors="ignore").encode()
    code = bytes((1 << 3, _RPC_CODES.get(status, 2)))
    return code + bytes((2 << 3 | 2,)) + encode_varint(len(text)) + text
