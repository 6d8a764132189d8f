"""The API's description for programs."""

from starlette.requests import Request
from starlette.responses import Response

from tensormeter.server.api.request import encode, json_response

__all__ = ["describe_api"]


async def describe_api(_: Request) -> Response:
    """The OpenAPI document."""
    return json_response(encode({"openapi": "3.1.0"}))
