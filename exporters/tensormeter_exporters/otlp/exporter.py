"""Any OTLP endpoint: a Collector, or a vendor's, over HTTP or gRPC.

The bytes go out as they lie in the spool. What comes twice is for the receiver to tell: OTLP has no id for a request.
"""

from typing import Final

from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, Exporter, ExporterConfig, Outcome, Request, Signal
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.otlp.cumulative import DeltaToCumulative
from tensormeter_exporters.otlp.environment import OtlpTarget, read_targets, wants_cumulative
from tensormeter_exporters.otlp.http import OtlpHttpSender

__all__ = ["OtlpExporter"]


class OtlpExporter(DecodingExporter):
    """See `tensormeter.exporter.Exporter` for the contract.

    Options, and without them the standard variables `OTEL_EXPORTER_OTLP_...`: `protocol` (`http/protobuf` or `grpc`),
    `endpoint`, `compression` (`gzip` or `none`), `certificate`, `client_certificate`, `client_key` (files), `insecure`
    (gRPC without a scheme in its endpoint), `temporality` (`cumulative` adds distributions up, because some receivers do not take
    each by itself; `delta` and `lowmemory` leave them as they are). `headers_variable` names an environment variable to take
    headers from instead of `OTEL_EXPORTER_OTLP_HEADERS`, where there are several destinations of this kind.

    Raises:
        SettingsError: An option cannot be used. A variable that cannot be used is warned about and ignored.
    """

    independent_signals: Final = True

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
        from tensormeter_exporters.otlp.grpc import OtlpGrpcSender  # gRPC only where it is wanted
    except ModuleNotFoundError as error:
        raise SettingsError(f"otlp needs the package {error.name!r}; pip install 'tensormeter[grpc]'") from None
    return OtlpGrpcSender(target, timeout)
