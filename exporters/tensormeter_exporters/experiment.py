"""The experiment server, over OTLP/HTTP with protobuf and gzip.

Any OTLP/HTTP receiver understands these requests; the experiment server also understands the header
`Tensormeter-Batch-Id`, by which it knows a request that it has stored before.

If the endpoint is OpenTelemetry's (`OTEL_EXPORTER_OTLP_ENDPOINT`), the other variables of OTLP exporters count as well:
headers, endpoints of the signals, compression, timeouts, certificates, and the protocol, which may be gRPC.
"""

import dataclasses
from typing import Final
from urllib.parse import urlsplit

from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import (
    Exporter,
    ExporterConfig,
    Outcome,
    Rejected,
    Request,
    Retry,
    Signal,
    TooLarge,
    Unauthorized,
)
from tensormeter.otlp_environment import OtlpTarget, belongs_to_opentelemetry, read_targets, signal_url
from tensormeter_exporters.bodies import decompress
from tensormeter_exporters.otlp_http import tls_context
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
        self._targets = {signal: target for signal, target in _targets(config).items() if signal in config.signals}
        self._routes = {signal: _route(target) for signal, target in self._targets.items()}

    def export(self, request: Request, timeout: float | None = None) -> Outcome:
        """As the contract says; `timeout` makes this attempt shorter than the others."""
        target, route = self._targets[request.signal], self._routes[request.signal]
        if not isinstance(route, OtlpPost):
            return route.export(request)
        try:
            body = request.body if target.gzip else decompress(request)
        except EncodingError as error:
            return Rejected(str(error))
        answer = route.send(target.endpoint, body, {"Tensormeter-Batch-Id": request.id}, timeout=timeout)
        if isinstance(answer, Retry):
            return answer
        if answer.ok:
            return answer.accepted(request.signal, request.items)
        if answer.status in _PERMANENT:
            return Rejected(answer.reason, divide=answer.status in _CONTENT)
        if answer.status in (401, 403):
            return Unauthorized(
                f"{answer.reason}; set TENSORMETER_TOKEN to a token of that server, or, if it is OpenTelemetry's endpoint, "
                "OTEL_EXPORTER_OTLP_HEADERS to what it wants"
            )
        if answer.status == 413:
            return TooLarge(answer.reason)
        return Retry(answer.reason, answer.retry_after)

    def abort(self) -> None:
        """End an `export` that is under way on another thread. It returns `Retry`."""
        for route in self._routes.values():
            if isinstance(route, OtlpPost):
                route.abort()
            else:
                route.shutdown()  # which ends its calls

    def shutdown(self) -> None:
        for route in self._routes.values():
            if isinstance(route, OtlpPost):
                route.close()
            else:
                route.shutdown()


def _targets(config: ExporterConfig) -> dict[Signal, OtlpTarget]:
    base = config.endpoint.rstrip("/")
    token = {"authorization": f"Bearer {config.token}"} if config.token else {}
    if not belongs_to_opentelemetry(base):
        secure = base.lower().startswith("https:")
        return {
            signal: OtlpTarget("http/protobuf", signal_url(base, signal), secure, token, timeout=config.timeout)
            for signal in config.signals
        }
    targets = read_targets(config.destination or "experiment", {}, config.timeout, default_endpoint=base)
    return {
        # The token is that of the endpoint, and goes to no other server that a signal may have.
        signal: dataclasses.replace(target, headers={**target.headers, **token}) if _is_at(target, base) else target
        for signal, target in targets.items()
    }


def _is_at(target: OtlpTarget, base: str) -> bool:
    scheme, netloc, *_ = urlsplit(base)
    if target.protocol == "grpc":
        return target.endpoint in (netloc, f"{netloc}:4317")
    return urlsplit(target.endpoint)[:2] == (scheme, netloc)


def _route(target: OtlpTarget) -> OtlpPost | Exporter:
    if target.protocol == "http/protobuf":
        encoding = {"content-encoding": "gzip"} if target.gzip else {}
        return OtlpPost(target.timeout, {**target.headers, **encoding}, tls_context(target))
    try:
        from tensormeter_exporters.otlp_grpc import OtlpGrpcSender  # gRPC only where it is wanted
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs the package {error.name!r}; pip install 'tensormeter[grpc]', or set it "
            "to http/protobuf, and OTEL_EXPORTER_OTLP_ENDPOINT to the port of OTLP over HTTP"
        ) from None
    return OtlpGrpcSender(target, target.timeout)
