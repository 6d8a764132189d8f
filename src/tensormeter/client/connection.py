"""HTTP requests to an experiment server."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3

from tensormeter.errors import TensormeterError, UsageError
from tensormeter.settings import Settings

__all__ = ["COLUMNS", "ApiError", "Connection"]

COLUMNS: Final = "application/vnd.tensormeter.columns"
"""Media type of binary responses; see docs/api.md."""

_MAX_CONNECTIONS: Final = 8


class ApiError(TensormeterError):
    """An error response from the server.

    Attributes:
        status: HTTP status of the response.
        code: Machine-readable error code, such as "not_found"; "" if the server sent none.
    """

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(f"the server answered {status}: {error.get('message', error)}")
        self.status = status
        self.code = str(error.get("code", ""))


class Connection:
    """A client for the HTTP API of one server, with a pool of connections.

    Each method blocks until the whole response has arrived or a timeout expires. The connection is thread-safe. After a
    fork, create a new connection in the child.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, timeout: float = 60.0) -> None:
        """Create a connection. The first request opens it.

        Args:
            endpoint: Base URL. Default: the setting `endpoint`.
            token: Bearer token. Default: `TENSORMETER_TOKEN`, or the contents of the file named by
                `TENSORMETER_TOKEN_FILE`.
            timeout: Maximum time to wait for the next byte of a response, in seconds.

        Raises:
            SettingsError: The endpoint is not a URL, or the token is invalid.
        """
        fields = {"endpoint": endpoint, "token": token}
        settings = Settings(**{name: value for name, value in fields.items() if value is not None})  # type: ignore[arg-type]
        self._endpoint = settings.endpoint.rstrip("/")
        self._token = settings.current_token()
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=min(timeout, 5.0), read=timeout), retries=False, maxsize=_MAX_CONNECTIONS
        )

    def __repr__(self) -> str:
        return f"Connection({self._endpoint!r})"

    @property
    def endpoint(self) -> str:
        """Base URL of the server."""
        return self._endpoint

    def get(self, *path: str, **query: str | float | None) -> dict[str, Any]:
        """Request a path under /api/v1/, and return the JSON document.

        Args:
            path: Path segments below /api/v1/, not percent-encoded.
            query: Query parameters. Parameters with the value None are omitted.

        Raises:
            ApiError: The server returns an error.
            TensormeterError: The server does not respond or is not a tensormeter server. The message suggests a remedy.
        """
        return self._document(self._request("GET", path, query=query))

    def send(self, method: str, *path: str, document: Mapping[str, Any] | None = None, **query: str | None) -> Any:
        """Send a request with a method other than GET, and return the JSON document, or None for an empty response.

        See `get` for the arguments and errors.
        """
        body = None if document is None else json.dumps(document).encode()
        response = self._request(method, path, query=query, body=body)
        return None if response.status == 204 else self._document(response)

    def columns(
        self, *path: str, document: Mapping[str, Any] | None = None, **query: str | float | None
    ) -> tuple[dict[str, Any], memoryview]:
        """Request a binary response. Return its JSON header, and all bytes of the response.

        The offsets in the header are relative to the start of the response. See `get` for the arguments and errors.
        """
        body = None if document is None else json.dumps(document).encode()
        headers = {"Accept": COLUMNS}
        response = self._request("GET" if body is None else "POST", path, query=query, body=body, headers=headers)
        if response.status != 200 or response.headers.get("Content-Type") != COLUMNS:
            self._document(response)
            raise TensormeterError(
                f"{self._endpoint} does not support binary responses for this request; upgrade the server"
            )
        data = memoryview(response.data)
        return json.loads(bytes(data[4 : 4 + int.from_bytes(data[:4], "little")])), data

    def content(self, *path: str, **query: str | None) -> tuple[str, bytes]:
        """Request a response that is not JSON. Return its media type and bytes. See `get` for the errors."""
        response = self._request("GET", path, query=query)
        if response.status != 200:
            self._document(response)
        return response.headers.get("Content-Type", ""), response.data

    def updates(self, **query: str) -> Iterator[dict[str, Any]]:
        """Yield the documents of the server's stream of updates, beginning with its cursor.

        The iteration ends when the server closes the stream. See `get` for the errors.
        """
        response = self._request("GET", ("stream",), query=query, preload_content=False)
        try:
            if response.status != 200:
                self._document(response)
            buffer = b""
            for chunk in response.stream():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        yield json.loads(line.removeprefix(b"data: "))
        except urllib3.exceptions.HTTPError as error:
            raise TensormeterError(self._unreachable(error)) from None
        finally:
            response.close()

    def close(self) -> None:
        """Close idle connections. A later request opens a new one."""
        self._pool.clear()

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, object],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        preload_content: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        try:
            segments = "/".join(quote(segment, safe="") for segment in path)
            parameters = urlencode({name: value for name, value in query.items() if value is not None})
        except UnicodeEncodeError as error:
            raise UsageError(f"expected Unicode text, got {error.object!r}, which contains a lone surrogate") from None
        url = f"{self._endpoint}/api/v1/{segments}" + (f"?{parameters}" if parameters else "")
        all_headers = dict(headers or {})
        if self._token is not None:
            all_headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            all_headers["Content-Type"] = "application/json"
        try:
            # Do not follow redirects, because a redirect could send the token to another server.
            return self._pool.request(
                method, url, body=body, headers=all_headers, redirect=False, preload_content=preload_content
            )
        except urllib3.exceptions.HTTPError as error:
            raise TensormeterError(self._unreachable(error)) from None

    def _document(self, response: urllib3.BaseHTTPResponse) -> dict[str, Any]:
        try:
            document = json.loads(response.data)
        except ValueError:
            document = None
        if not isinstance(document, dict) or (response.status != 200 and not isinstance(document.get("error"), dict)):
            raise TensormeterError(
                f"{self._endpoint} answered {response.status} and is not a tensormeter server; check the endpoint",
            )
        if response.status != 200:
            raise ApiError(response.status, document["error"])
        return document

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            return f"no server at {self._endpoint}; start one with `tensormeter serve`, or pass another endpoint"
        detail = f": {error}" if isinstance(error, urllib3.exceptions.SSLError) else ""
        return (
            f"no response from {self._endpoint} ({type(error).__name__}{detail}); check the endpoint and the "
            "server's log"
        )
