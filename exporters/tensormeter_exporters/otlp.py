"""Any OTLP endpoint: a Collector, or a vendor's, over HTTP or gRPC.

The bytes go out as they lie in the spool. What comes twice is for the receiver to tell: OTLP has no id for a request.
"""

from tensormeter.errors import SettingsError
from tensormeter.exporter import Exporter, ExporterConfig, Outcome, Request, Signal
from tensormeter_exporters.otlp_environment import OtlpTarget, read_targets
from tensormeter_exporters.otlp_http import OtlpHttpSender

__all__ = ["OtlpExporter"]


class OtlpExporter:
    """See `tensormeter.exporter.Exporter` for the contract.

    Options, and without them the standard variables `OTEL_EXPORTER_OTLP_...`: `protocol` (`http/protobuf` or `grpc`),
    `endpoint`, `compression` (`gzip` or `none`), `certificate`, `client_certificate`, `client_key` (files), `insecure`
    (gRPC without a scheme in its endpoint). `headers_variable` names an environment variable to take headers from instead
    of `OTEL_EXPORTER_OTLP_HEADERS`, where there are several destinations of this kind.
    """

    def __init__(self, config: ExporterConfig) -> None:
        self._senders: dict[Signal, Exporter | OtlpHttpSender] = {
            signal: _sender(target, config.timeout) for signal, target in read_targets(config).items()
        }

    def export(self, request: Request) -> Outcome:
        return self._senders[request.signal].export(request)

    def shutdown(self) -> None:
        for sender in self._senders.values():
            sender.shutdown()


def _sender(target: OtlpTarget, timeout: float) -> "Exporter | OtlpHttpSender":
    if target.protocol == "http/protobuf":
        return OtlpHttpSender(target, timeout)
    try:
        from tensormeter_exporters.otlp_grpc import OtlpGrpcSender  # gRPC only where it is wanted
    except ModuleNotFoundError as error:
        raise SettingsError(f"otlp needs the package {error.name!r}; pip install 'tensormeter[grpc]'") from None
    return OtlpGrpcSender(target, timeout)
