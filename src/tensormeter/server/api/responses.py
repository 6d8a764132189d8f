"""JSON responses of the API."""

from typing import Any, Final

import msgspec
from starlette.responses import Response

__all__ = ["encode", "json_response"]

_ENCODER: Final = msgspec.json.Encoder()


def encode(document: Any) -> bytes:
    """Encode a document as JSON without spaces.

    NaN and infinities must already be strings; otherwise, they become null.
    """
    return _ENCODER.encode(document)


def json_response(body: bytes) -> Response:
    """Create a response from an encoded document."""
    return Response(body, media_type="application/json")
