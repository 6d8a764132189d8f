"""The standard variables of OTLP exporters (OpenTelemetry specification, "OpenTelemetry Protocol Exporter").

For each: the destination's option first, then the signal's own variable, then the general one, then the default.
"""

import os
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import unquote, urlsplit

from tensormeter.errors import SettingsError
from tensormeter.exporter import ExporterConfig, Signal

__all__ = ["OtlpTarget", "how_to_leave_out", "read_targets"]

Protocol = Literal["grpc", "http/protobuf"]

_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_TEMPORALITIES: Final = ("cumulative", "delta", "lowmemory")
_DEFAULTS: Final[dict[str, str]] = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}


@dataclass(frozen=True)
class OtlpTarget:
    """Where and how one signal is sent.

    Attributes:
        protocol: `grpc` or `http/protobuf`.
        endpoint: For HTTP the whole URL, for gRPC `host:port`.
        secure: Whether with TLS.
        headers: In lower case. They may hold secrets and are in no `repr`.
        gzip: Whether bodies travel compressed.
        certificate: File with the authorities that the server's certificate is checked against, or the system's if "".
        client_certificate: File with our own certificate for mutual TLS, or "".
        client_key: File with its key, or "".
        cumulative: Whether distributions are added up before they are sent.
    """

    protocol: Protocol
    endpoint: str
    secure: bool
    headers: dict[str, str]
    gzip: bool
    certificate: str
    client_certificate: str
    client_key: str
    cumulative: bool = False

    def __repr__(self) -> str:
        return f"OtlpTarget({self.protocol!r}, {self.endpoint!r}, headers={sorted(self.headers)})"


def read_targets(config: ExporterConfig) -> dict[Signal, OtlpTarget]:
    """The target of each signal.

    Raises:
        SettingsError: An option or a variable cannot be used.
    """
    options = config.options_or(
        protocol="",
        endpoint="",
        compression="",
        certificate="",
        client_certificate="",
        client_key="",
        insecure="",
        headers_variable="",
        temporality="",
    )
    return {signal: _target(config.destination, signal, options) for signal in config.signals}


def how_to_leave_out(signal: Signal) -> str:
    """A hint for whoever has a receiver that does not take a signal."""
    return f"If this receiver takes no {signal}, set OTEL_{signal.upper()}_EXPORTER=none"


def _target(destination: str, signal: Signal, options: dict[str, str]) -> OtlpTarget:
    def read(name: str, default: str = "") -> str:
        if options.get(name):
            return options[name]
        variable = name.upper()
        return (
            os.environ.get(f"{_PREFIX}{signal.upper()}_{variable}") or os.environ.get(f"{_PREFIX}{variable}") or default
        ).strip()

    protocol = read("protocol", "http/protobuf")
    if protocol not in _DEFAULTS:
        raise SettingsError(f"{destination}: expected a protocol of {', '.join(_DEFAULTS)}, got {protocol!r}")
    compression = read("compression", "gzip")
    if compression not in ("gzip", "none"):
        raise SettingsError(f"{destination}: expected a compression of gzip, none, got {compression!r}")
    endpoint = read("endpoint", _DEFAULTS[protocol])
    own = not options["endpoint"] and bool(os.environ.get(f"{_PREFIX}{signal.upper()}_ENDPOINT"))
    insecure = read("insecure", "false").lower() == "true"
    if protocol == "grpc" and "://" not in endpoint:
        endpoint = f"{'http' if insecure else 'https'}://{endpoint}"
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise SettingsError(f"{destination}: expected an endpoint such as {_DEFAULTS[protocol]}, got {endpoint!r}")
    if protocol == "grpc":
        endpoint = parts.netloc if parts.port else f"{parts.netloc}:4317"
    elif not own:  # the general endpoint is a base, the signal's own is used as it is
        endpoint = f"{endpoint.rstrip('/')}/v1/{signal}"
    return OtlpTarget(
        protocol=cast("Protocol", protocol),
        endpoint=endpoint,
        secure=parts.scheme == "https",
        headers=_headers(destination, _header_text(options["headers_variable"], signal)),
        gzip=compression == "gzip",
        certificate=read("certificate"),
        client_certificate=read("client_certificate"),
        client_key=read("client_key"),
        cumulative=_wants_cumulative(destination, options["temporality"]),
    )


def _wants_cumulative(destination: str, option: str) -> bool:
    """By the option, or the metrics' temporality preference; without either, distributions go as they were recorded."""
    if option and option not in _TEMPORALITIES:
        raise SettingsError(f"{destination}: expected a temporality of {', '.join(_TEMPORALITIES)}, got {option!r}")
    return (option or os.environ.get(f"{_PREFIX}METRICS_TEMPORALITY_PREFERENCE", "")).strip().lower() == "cumulative"


def _header_text(variable: str, signal: Signal) -> str:
    if variable:
        return os.environ.get(variable, "")
    return os.environ.get(f"{_PREFIX}{signal.upper()}_HEADERS") or os.environ.get(f"{_PREFIX}HEADERS") or ""


def _headers(destination: str, text: str) -> dict[str, str]:
    """As in W3C Baggage: `name=value`, separated by commas, values percent-encoded."""
    headers = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, found, value = item.partition("=")
        value = unquote(value.strip())
        if not found or not name.strip().isascii() or "\n" in value or "\r" in value:
            raise SettingsError(f"{destination}: expected headers as NAME=VALUE,NAME=VALUE")  # and never shows them
        headers[name.strip().lower()] = value
    return headers
