"""Sender for OTLP over gRPC. It makes unary calls with the encoded bytes, without generated stubs."""

import re
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as ProtobufAny
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tensormeter.errors import SettingsError
from tensormeter.exporter import Outcome, Rejected, Request, Retry, Signal, TooLarge, Unauthorized
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.otlp.answers import read_response
from tensormeter_exporters.otlp.environment import OtlpTarget, how_to_leave_out
from tensormeter_exporters.request_bodies import decompress

__all__ = ["OtlpGrpcSender"]

_METHODS: Final = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    },
)
"""Retryable statuses according to the OTLP specification. RESOURCE_EXHAUSTED is retryable only with a RetryInfo."""

_TOO_LARGE: Final = ("larger than max", "length too large", "message too large")
"""Parts of grpc-go's, tonic's and grpc-java's messages about a request that is too large. gRPC has no such status."""

_NOT_GRPC: Final = re.compile(r"Received http2 header with status: (\d+)|Stream removed")
"""gRPC messages about a response without a gRPC status: a proxy's web page, a redirect, or an interrupted stream."""

_LARGEST_ANSWER: Final = 4 << 20

_OUR_LIMIT: Final = "CLIENT: "
"""Prefix of the gRPC message about a response that is too large for this client."""


class OtlpGrpcSender(DecodingExporter):
    """Sender that uses one channel, which connects on demand and reconnects after failures."""

    def __init__(self, target: OtlpTarget, timeout: float) -> None:
        """
        Raises:
            SettingsError: A certificate or key cannot be read.
        """
        self._target = target
        self._timeout = timeout
        self._metadata = tuple(target.headers.items())
        compression = grpc.Compression.Gzip if target.gzip else grpc.Compression.NoCompression
        options = [("grpc.max_receive_message_length", _LARGEST_ANSWER), ("grpc.enable_retries", 0)]
        if target.secure:
            credentials = _credentials(target)
            self._channel = grpc.secure_channel(target.endpoint, credentials, options, compression)
        else:
            self._channel = grpc.insecure_channel(target.endpoint, options, compression)
        self._calls: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {
            signal: self._channel.unary_unary(method, request_serializer=None, response_deserializer=None)
            for signal, method in _METHODS.items()
        }

    def deliver(self, request: Request) -> Outcome:
        body = decompress(request)
        try:
            answer = self._calls[request.signal](
                body,
                timeout=self._timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            return self._outcome(request.signal, error)
        try:
            return read_response(request.signal, answer, request.items)
        except DecodeError:
            return Retry(f"{self._target.endpoint} sent a response that is not OTLP; check the endpoint")

    def shutdown(self) -> None:
        self._channel.close()

    def _outcome(self, signal: Signal, error: grpc.RpcError) -> Outcome:
        code, details = error.code(), error.details() or ""
        reason = f"{self._target.endpoint}: {code.name} {details}".rstrip()
        if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE) and any(
            words in details for words in _TOO_LARGE
        ):
            return Retry(reason) if _OUR_LIMIT in details else TooLarge(reason)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return Unauthorized(f"{reason}; set OTEL_EXPORTER_OTLP_HEADERS to credentials that it accepts")
        if match := _NOT_GRPC.search(details):
            if match[1] == "413":
                return TooLarge(reason)
            return Retry(f"{reason}; check the endpoint")
        after = _retry_delay(error)
        if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and after is not None):
            return Retry(reason, after)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            # Only the user can correct the address.
            return Retry(f"{reason}; is the endpoint right? {how_to_leave_out(signal)}")
        return Rejected(reason, divide=code is not grpc.StatusCode.RESOURCE_EXHAUSTED)


def _retry_delay(error: grpc.RpcError) -> float | None:
    """Return the delay in seconds from a `google.rpc.RetryInfo` in the trailing metadata, or None if there is none."""
    for entry in error.trailing_metadata() or ():
        if entry.key == "grpc-status-details-bin":
            try:
                details: list[ProtobufAny] = list(Status.FromString(entry.value).details)
            except DecodeError:
                return None
            for detail in details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(max(0.0, info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
    return None


def _credentials(target: OtlpTarget) -> grpc.ChannelCredentials:
    def read(path: str) -> bytes | None:
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise SettingsError(f"{target.endpoint}: cannot read a certificate or key: {error}") from None

    return grpc.ssl_channel_credentials(
        root_certificates=read(target.certificate),
        private_key=read(target.client_key or target.client_certificate),  # one file may contain both
        certificate_chain=read(target.client_certificate),
    )
