"""OTLP over HTTP, with protobuf."""

import gzip
import ssl
import time
from importlib.metadata import version
from typing import Final

import urllib3

from tensormeter.errors import SettingsError
from tensormeter.exporter import Outcome, Rejected, Request, Retry, TooLarge, Unauthorized
from tensormeter_exporters.experiment import _accepted, _describe, _read, _retry_after
from tensormeter_exporters.otlp_environment import OtlpTarget

__all__ = ["OtlpHttpSender"]

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""The protocol's own list: everything else is the request's fault, and permanent."""

_LARGEST_REQUEST: Final = 64 << 20


class OtlpHttpSender:
    """Sends requests to one URL. Redirects are not followed: they would carry the headers elsewhere."""

    def __init__(self, target: OtlpTarget, timeout: float) -> None:
        """
        Raises:
            SettingsError: A certificate or key cannot be read.
        """
        self._target = target
        self._timeout = timeout
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": f"tensormeter/{version('tensormeter')}",
        } | target.headers
        if target.gzip:
            self._headers["Content-Encoding"] = "gzip"
        context = _context(target) if target.secure else None
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, ssl_context=context)

    def export(self, request: Request) -> Outcome:
        if self._target.gzip:
            body = request.body
        else:
            body = gzip.decompress(request.body)
            if len(body) > _LARGEST_REQUEST:
                return TooLarge(f"{len(body)} bytes are more than OTLP allows in one request")
        deadline = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                "POST",
                self._target.endpoint,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(total=self._timeout),
                redirect=False,
                preload_content=False,
            )
            try:
                answer = _read(response, deadline)
            except BaseException:
                response.close()  # with the rest of the answer still to come, the connection is of no use
                raise
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Retry(f"{self._target.endpoint}: {_describe(error)}")
        return self._outcome(request, response, answer)

    def shutdown(self) -> None:
        self._pool.clear()

    def _outcome(self, request: Request, response: urllib3.BaseHTTPResponse, answer: bytes) -> Outcome:
        status = response.status
        if status == 200:
            return _accepted(request, response.headers.get("Content-Type", ""), answer)
        reason = f"{self._target.endpoint} answered {status} {response.reason or ''}".rstrip()
        if status in _RETRYABLE:
            return Retry(reason, _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            return Unauthorized(f"{reason}; set OTEL_EXPORTER_OTLP_HEADERS to what it wants")
        if status == 413:
            return TooLarge(reason)
        if status in (404, 405) or 300 <= status < 400:
            return Retry(f"{reason}; is the endpoint right?")  # a wrong address is mended by a person, not by dropping
        return Rejected(reason)


def _context(target: OtlpTarget) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=target.certificate or None)
        if target.client_certificate:
            context.load_cert_chain(target.client_certificate, target.client_key or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{target.endpoint}: its certificates cannot be read: {error}") from None
    return context
