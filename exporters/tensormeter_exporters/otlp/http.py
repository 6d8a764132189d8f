"""Sender for OTLP over HTTP, with Protobuf bodies."""

import ssl
from typing import Final

from tensormeter.environment.variables import key_log_usable
from tensormeter.errors import SettingsError
from tensormeter.exporter import Outcome, Rejected, Request, Retry, TooLarge, Unauthorized
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.otlp.environment import OtlpTarget, how_to_leave_out
from tensormeter_exporters.otlp.http_client import OtlpPost
from tensormeter_exporters.request_bodies import decompress

__all__ = ["OtlpHttpSender", "tls_context"]

_RETRYABLE: Final = frozenset({408, 425, 429, 502, 503, 504, 507, *range(520, 528), 530})
"""Retryable statuses: those of the OTLP specification, and those of proxies whose receiver is unreachable or slow."""

_CONTENT: Final = frozenset({400, 422, 500})
"""Permanent errors that a single item may cause. Prometheus returns 500 for a metric with an unsupported type."""

_LARGEST_REQUEST: Final = 64 << 20


class OtlpHttpSender(DecodingExporter):
    """Sender of requests to one URL. Redirects are not followed, because they would send the headers elsewhere."""

    def __init__(self, target: OtlpTarget, timeout: float) -> None:
        """
        Raises:
            SettingsError: A certificate or key cannot be read.
        """
        self._target = target
        encoding = {"Content-Encoding": "gzip"} if target.gzip else {}
        self._post = OtlpPost(timeout, {**target.headers, **encoding}, tls_context(target))

    def deliver(self, request: Request) -> Outcome:
        body = request.body if self._target.gzip else decompress(request)
        if not self._target.gzip and len(body) > _LARGEST_REQUEST:
            return TooLarge(f"a request of {len(body)} bytes is larger than OTLP allows")
        answer = self._post.send(self._target.endpoint, body, {})
        if isinstance(answer, Retry):
            return answer
        if answer.ok:
            return answer.accepted(request.signal, request.items)
        if answer.status in _RETRYABLE:
            return Retry(answer.reason, answer.retry_after)
        if answer.status in (401, 403):
            return Unauthorized(f"{answer.reason}; set OTEL_EXPORTER_OTLP_HEADERS to credentials that it accepts")
        if answer.status == 413:
            return TooLarge(answer.reason)
        if answer.status in (404, 405, 501) or 300 <= answer.status < 400:
            # Only the user can correct the address; dropping data would not help.
            return Retry(f"{answer.reason}; is the endpoint right? {how_to_leave_out(request.signal)}")
        return Rejected(answer.reason, divide=answer.status in _CONTENT)

    def shutdown(self) -> None:
        self._post.close()


def tls_context(target: OtlpTarget) -> ssl.SSLContext | None:
    """Return the TLS context for a target, or None for connections without TLS.

    Raises:
        SettingsError: A certificate or key cannot be read.
    """
    if not target.secure:
        return None
    try:
        with key_log_usable():
            context = ssl.create_default_context(cafile=target.certificate or None)
        if target.client_certificate:
            context.load_cert_chain(
                target.client_certificate, target.client_key or None, password=""
            )  # an empty password prevents a prompt
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{target.endpoint}: cannot read a certificate or key: {error}") from None
    return context
