"""The `otlp` destination: any OTLP endpoint, such as a Collector or a vendor, over HTTP or gRPC.

Requests are sent as stored in the spool. Deduplication is left to the receiver, because OTLP has no request IDs.
"""

from typing import ClassVar, Final

from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, Exporter, ExporterConfig, Outcome, Request, Signal
from tensormeter_exporters.base import UNCHANGED, DecodingExporter
from tensormeter_exporters.otlp.cumulative import DeltaToCumulative
from tensormeter_exporters.otlp.environment import OtlpTarget, read_targets, wants_cumulative
from tensormeter_exporters.otlp.http import OtlpHttpSender

__all__ = ["OtlpExporter"]


class OtlpExporter(DecodingExporter):
    """The exporter of the `otlp` destination. It implements `tensormeter.exporter.Exporter`.

    The standard variables `OTEL_EXPORTER_OTLP_...` apply to options that are not set.

    Options:
        protocol: `http/protobuf` or `grpc`.
        endpoint: Base URL, or `host:port` for gRPC.
        compression: `gzip` or `none`.
        certificate: File with the certificate authorities for verifying the server.
        client_certificate: File with the client's certificate.
        client_key: File with the client's private key.
        insecure: Whether gRPC disables TLS for an endpoint without a scheme.
        temporality: `cumulative` converts distributions to cumulative sums, for receivers that refuse deltas; `delta`
            and `lowmemory` send them unchanged.
        headers_variable: Environment variable with the headers. Default: `OTEL_EXPORTER_OTLP_HEADERS`. With this
            option, several destinations of this kind can have different headers.

    Raises:
        SettingsError: An option is invalid. An invalid variable is ignored with a warning.
    """

    independent_signals: Final = True
    media: ClassVar = UNCHANGED
    uses_token: Final = False

    def __init__(self, config: ExporterConfig) -> None:
        targets = read_targets(config)
        self._senders: dict[Signal, Exporter | OtlpHttpSender] = {
            signal: _sender(target, target.timeout) for signal, target in targets.items()
        }
        self._sums: DeltaToCumulative | None = None
        if "metrics" in targets and wants_cumulative(config):
            self._sums = DeltaToCumulative(config.state)

    def deliver(self, request: Request) -> Outcome:
        sender = self._senders[request.signal]
        if self._sums is None or request.signal != "metrics":
            return sender.export(request)
        if self._sums.has(request.id):
            return Accepted()
        added = self._sums.add(request)
        outcome = sender.export(added.request)
        if isinstance(outcome, Accepted):
            self._sums.keep(added)
        return outcome

    def shutdown(self) -> None:
        for sender in self._senders.values():
            sender.shutdown()


def _sender(target: OtlpTarget, timeout: float) -> "Exporter | OtlpHttpSender":
    if target.protocol == "http/protobuf":
        return OtlpHttpSender(target, timeout)
    try:
        from tensormeter_exporters.otlp.grpc import OtlpGrpcSender  # imported only if used
    except ModuleNotFoundError as error:
        raise SettingsError(f"otlp needs the package {error.name!r}; run pip install 'tensormeter[grpc]'") from None
    return OtlpGrpcSender(target, timeout)
