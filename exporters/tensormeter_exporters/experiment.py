"""The experiment server, over OTLP/HTTP with protobuf and gzip.

Any OTLP/HTTP receiver understands these requests; the experiment server also understands the header
`Tensormeter-Batch-Id`, by which it knows a request that it has stored before.
"""

from typing import Final

from tensormeter.exporter import ExporterConfig, Outcome, Rejected, Request, Retry, TooLarge, Unauthorized
from tensormeter_exporters.otlp_post import OtlpPost

__all__ = ["ExperimentExporter"]

# The request itself is wrong, and will be so the next time.
_PERMANENT: Final = frozenset({400, 409, 415, 422})

# Of these, what is about something in the request: another part of it may be right.
_CONTENT: Final = frozenset({400, 422})


class ExperimentExporter:
    """See `tensormeter.exporter.Exporter` for the contract. Redirects are not followed, so the token goes nowhere else."""

    independent_signals: Final = True

    def __init__(self, config: ExporterConfig) -> None:
        self._url = config.endpoint.rstrip("/")
        headers = {"Content-Encoding": "gzip"}
        if config.token:
            headers["Authorization"] = f"Bearer {config.token}"
        self._post = OtlpPost(config.timeout, headers)

    def export(self, request: Request, timeout: float | None = None) -> Outcome:
        """As the contract says; `timeout` makes this attempt shorter than the others."""
        answer = self._post.send(
            f"{self._url}/v1/{request.signal}", request.body, {"Tensormeter-Batch-Id": request.id}, timeout=timeout
        )
        if isinstance(answer, Retry):
            return answer
        if answer.ok:
            return answer.accepted(request.signal, request.items)
        if answer.status in _PERMANENT:
            return Rejected(answer.reason, divide=answer.status in _CONTENT)
        if answer.status in (401, 403):
            return Unauthorized(f"{answer.reason}; set TENSORMETER_TOKEN to a token of that server")
        if answer.status == 413:
            return TooLarge(answer.reason)
        return Retry(answer.reason, answer.retry_after)

    def abort(self) -> None:
        """End an `export` that is under way on another thread. It returns `Retry`."""
        self._post.abort()

    def shutdown(self) -> None:
        self._post.close()
