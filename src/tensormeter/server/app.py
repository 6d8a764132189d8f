"""The ASGI application: routes, error responses, and the middleware around them."""

from importlib.metadata import version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tensormeter.errors import EncodingError, StoreError, UsageError
from tensormeter.otlp.elements import TooManyElementsError
from tensormeter.server.api import Shutdown, api_routes
from tensormeter.server.auth.authenticator import Authenticator
from tensormeter.server.auth.project_scope import ForbiddenError, Stores
from tensormeter.server.auth.request_guard import RequestGuard
from tensormeter.server.config import ServerConfig
from tensormeter.server.http.errors import error_response
from tensormeter.server.http.request_hooks import Listener, Observer
from tensormeter.server.http.static_files import StaticFiles, wants_page
from tensormeter.server.limits.responses import Pieces
from tensormeter.server.receivers.otlp_http import THREADS, WAITING_THREADS, Receiver
from tensormeter.server.receivers.unstored_signals import OtherSignals
from tensormeter.server.store import (
    AmbiguousRunError,
    BatchConflictError,
    NotFoundError,
    Store,
    StoreUnavailableError,
    TooManyPointsError,
)
from tensormeter.server.viewers import Viewers

__all__ = ["create_app"]

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    503: "unavailable",
}


def create_app(
    store: Store,
    config: ServerConfig,
    shutdown: Shutdown | None = None,
    listener: Listener | None = None,
) -> ASGIApp:
    """Create the ASGI application for `store`. The caller closes the store after the server has stopped.

    Args:
        store: Store that requests read from and write to.
        config: Limits and access rules of the server.
        shutdown: Signal that ends streams when the server stops.
        listener: Listener to notify of each finished request and each stored OTLP request.
    """
    page = StaticFiles()
    stores = Stores(store)
    viewers = Viewers()
    listener = listener or Listener()

    async def index(request: Request) -> Response:
        if wants_page(request):
            return page.index(request)
        links = {"projects": "/api/v1/projects", "runs": "/api/v1/runs", "metrics": "/v1/metrics", "logs": "/v1/logs"}
        document = {"name": "tensormeter", "version": version("tensormeter"), "links": links}
        return JSONResponse(document, headers={"Vary": "Accept, Accept-Encoding"})

    async def ready(request: Request) -> Response:
        if shutdown is not None and shutdown.started:
            return error_response(request.scope, 503, "stopping", "the server is stopping")
        return await health(request)

    async def health(request: Request) -> Response:
        # Health checks run on the event loop, because all worker threads may be waiting for the disk.
        problem = store.problem()
        if problem is not None:
            return error_response(request.scope, 503, "unhealthy", problem)
        return JSONResponse({"status": "ok"})

    threads = THREADS if config.clickhouse is None else WAITING_THREADS
    app = Starlette(
        routes=[
            Route("/", index),
            Route("/healthz", health),
            Route("/readyz", ready),
            *page.routes(),
            *Receiver(stores, config.max_body_bytes, listener, viewers, threads).routes(),
            *OtherSignals().routes(),
            *api_routes(stores, shutdown or Shutdown(), viewers),
        ],
        exception_handlers={
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
            EncodingError: _on_bad_request,
            TooManyElementsError: _on_too_many,
            UsageError: _on_bad_request,
            StoreError: _on_store_error,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    authenticator = Authenticator(config.directory, config.token, config.own_token, is_local=config.is_local)
    guard = RequestGuard(app, authenticator, config.host, config.allowed_hosts, store.stalled)
    return Pieces(Observer(guard, listener))


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "error")
    return error_response(request.scope, error.status_code, code, error.detail, error.headers)


def _on_disconnect(request: Request, _: Exception) -> Response:
    return error_response(request.scope, 400, "bad_request", "the client closed the connection")


def _on_bad_request(request: Request, error: Exception) -> Response:
    return error_response(request.scope, 400, "bad_request", str(error))


def _on_too_many(request: Request, error: Exception) -> Response:
    return error_response(request.scope, 413, "too_large", str(error))


def _on_store_error(request: Request, error: Exception) -> Response:
    match error:
        case NotFoundError():
            status, code, headers = 404, "not_found", None
        case AmbiguousRunError():
            status, code, headers = 409, "ambiguous", None
        case BatchConflictError():
            status, code, headers = 409, "conflict", None
        case ForbiddenError():
            status, code, headers = 403, "forbidden", None
        case TooManyPointsError():
            status, code, headers = 413, "too_many_points", None
        case StoreUnavailableError():
            status, code, headers = 503, "unavailable", {"Retry-After": "5"}
        case _:
            status, code, headers = 500, "store_damaged", None
    return error_response(request.scope, status, code, str(error), headers)


def _on_bug(request: Request, _: Exception) -> Response:
    # Starlette raises the exception again after this response, and uvicorn logs its traceback.
    return error_response(
        request.scope, 500, "internal", "internal server error; see the traceback in the server's log"
    )
