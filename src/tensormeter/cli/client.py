"""A client of the experiment server's query API."""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import urllib3

from tensormeter.errors import TensormeterError
from tensormeter.settings import Settings

__all__ = ["ApiClient", "endpoint_option"]

_TIMEOUT: Final = urllib3.Timeout(connect=5, read=60)

endpoint_option = click.option(
    "--endpoint",
    metavar="URL",
    help="Base URL of the server.  [default: $TENSORMETER_ENDPOINT, or this machine's]",
)


class ApiClient:
    """Asks one server. Every method blocks until the answer is there."""

    def __init__(self, endpoint: str | None = None) -> None:
        """Create a client; connects to nothing yet.

        Args:
            endpoint: Base URL; by default as in `Settings`. The token always comes from `TENSORMETER_TOKEN`.

        Raises:
            SettingsError: The endpoint is not a URL.
        """
        settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
        self._endpoint = settings.endpoint.rstrip("/")
        self._headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)

    def get(self, *path: str, **query: str | int | None) -> dict[str, Any]:
        """A document under /api/v1/.

        Args:
            path: Segments, not quoted yet.
            query: Parameters; those that are None are left out.

        Raises:
            TensormeterError: No answer, or an error; the message says what to do.
        """
        segments = "/".join(quote(segment, safe="") for segment in path)
        parameters = urlencode({name: value for name, value in query.items() if value is not None})
        url = f"{self._endpoint}/api/v1/{segments}" + (f"?{parameters}" if parameters else "")
        try:
            # Redirects are not followed: they would carry the token elsewhere.
            response = self._pool.request("GET", url, headers=self._headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise TensormeterError(self._unreachable(error)) from None
        try:
            document = json.loads(response.data)
        except ValueError:
            document = None
        if not isinstance(document, dict) or (response.status != 200 and "error" not in document):
            raise TensormeterError(
                f"{self._endpoint} answered {response.status} and is not a tensormeter server; check --endpoint",
            )
        if response.status != 200:
            raise ApiError(response.status, document["error"])
        return document

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            return f"no server at {self._endpoint}; start one with `tensormeter serve`, or give --endpoint"
        return f"no answer from {self._endpoint} ({type(error).__name__}); check --endpoint and the server's log"


class ApiError(TensormeterError):
    """The server answered with an error.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(f"the server answered {status}: {error.get('message', error)}")
        self.status = status
