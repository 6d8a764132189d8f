"""HTTP to one experiment server."""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3

from tensormeter.errors import TensormeterError, UsageError
from tensormeter.settings import Settings

__all__ = ["COLUMNS", "ApiError", "Connection"]

COLUMNS: Final = "application/vnd.tensormeter.columns"
"""Media type of binary answers, see docs/api.md."""

_MAX_CONNECTIONS: Final = 8


class ApiError(TensormeterError):
    """The server answered with an error.

    Attributes:
        status: HTTP status.
        code: For programs, such as "not_found"; "" if the server gave none.
    """

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(f"the server answered {status}: {error.get('message', error)}")
        self.status = status
        self.code = str(error.get("code", ""))


class Connection:
    """Asks one server. Every method blocks until the whole answer is there, or the timeout is over.

    Threads: any number may use it at once. After a fork each process needs one of its own.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, timeout: float = 60.0) -> None:
        """Create a connection; it connects to nothing yet.

        Args:
            endpoint: Base URL; by default as in `Settings`.
            token: Bearer token; by default `TENSORMETER_TOKEN`, or what is in `TENSORMETER_TOKEN_FILE`.
            timeout: Seconds without a byte of the answer after which a request fails.

        Raises:
            SettingsError: The endpoint is not a URL, or the token cannot be used.
        """
        given = {"endpoint": endpoint, "token": token}
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
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
        """A document under /api/v1/.

        Args:
            path: Segments, not quoted yet.
            query: Parameters; those that are None are left out.

        Raises:
            TensormeterError: No answer, or an error; the message says what to do.
        """
        return self._document(self._request("GET", path, query=query))

    def send(self, method: str, *path: str, document: Mapping[str, Any] | None = None, **query: str | None) -> Any:
        """The document that another method than GET answers with, or None if it answers with nothing; see `get`."""
        body = None if document is None else json.dumps(document).encode()
        response = self._request(method, path, query=query, body=body)
        return None if response.status == 204 else self._document(response)

    def columns(
        self, *path: str, document: Mapping[str, Any] | None = None, **query: str | float | None
    ) -> tuple[dict[str, Any], memoryview]:
        """The header of a binary answer, and the whole answer, which the header's offsets count in; see `get`."""
        body = None if document is None else json.dumps(document).encode()
        headers = {"Accept": COLUMNS}
        response = self._request("GET" if body is None else "POST", path, query=query, body=body, headers=headers)
        if response.status != 200 or response.headers.get("Content-Type") != COLUMNS:
            self._document(response)
            raise TensormeterError(f"{self._endpoint} has no binary answers for this; its version is too old")
        data = memoryview(response.data)
        return json.loads(bytes(data[4 : 4 + int.from_bytes(data[:4], "little")])), data

    def content(self, *path: str, **query: str | None) -> tuple[str, bytes]:
        """Media type and bytes of an answer that is no document; see `get`."""
        response = self._request("GET", path, query=query)
        if response.status != 200:
            self._document(response)
        return response.headers.get("Content-Type", ""), response.data

    def close(self) -> None:
        """Close idle connections; a later request opens another."""
        self._pool.clear()

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, object],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        try:
            segments = "/".join(quote(segment, safe="") for segment in path)
            parameters = urlencode({name: value for name, value in query.items() if value is not None})
        except UnicodeEncodeError as error:
            raise UsageError(f"expected Unicode text, got {error.object!r}: it has half of a surrogate pair") from None
        url = f"{self._endpoint}/api/v1/{segments}" + (f"?{parameters}" if parameters else "")
        named = dict(headers or {})
        if self._token is not None:
            named["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            named["Content-Type"] = "application/json"
        try:
            # Redirects are not followed: they would carry the token elsewhere.
            return self._pool.request(method, url, body=body, headers=named, redirect=False)
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
            return f"no server at {self._endpoint}; start one with `tensormeter serve`, or give another endpoint"
        detail = f": {error}" if isinstance(error, urllib3.exceptions.SSLError) else ""
        return (
            f"no answer from {self._endpoint} ({type(error).__name__}{detail}); check the endpoint and the server's log"
        )
