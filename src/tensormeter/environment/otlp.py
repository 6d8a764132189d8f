"""The standard variables of OTLP exporters (OpenTelemetry specification, "OpenTelemetry Protocol Exporter").

Sources in order of precedence: the destination's option, the signal's own variable, the general variable, the default.
An invalid option is an error. An invalid variable is ignored with a warning (see `variables`).
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

from tensormeter.environment import variables as environment
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import SettingsError, join_choices

__all__ = [
    "DEFAULT_TIMEOUT",
    "OtlpTarget",
    "belongs_to_opentelemetry",
    "opentelemetry_endpoint",
    "opentelemetry_timeout",
    "read_targets",
    "signal_url",
]

Protocol = Literal["grpc", "http/protobuf"]
_Value = TypeVar("_Value")

DEFAULT_TIMEOUT: Final = 10.0

_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_DEFAULTS: Final[dict[str, str]] = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}
_COMPRESSIONS: Final = ("gzip", "none")
_GRPC_NAME: Final = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|xds|vsock|passthrough):(?!\d+$).+")
"""A name in gRPC's own syntax ("gRPC Name Resolution"), as opposed to a host and port."""

_GRPC_KEY: Final = re.compile(r"[0-9a-z_.-]+(?<!-bin)")


@dataclass(frozen=True)
class OtlpTarget:
    """The endpoint for a signal, and how to send requests to it.

    Attributes:
        protocol: `grpc` or `http/protobuf`.
        endpoint: Complete URL for HTTP; `host:port` or another name for gRPC. It contains no credentials.
        secure: Whether to use TLS.
        headers: Header values by lower-case name. They may contain secrets, so `repr` does not show them.
        gzip: Whether to compress bodies.
        certificate: File with the certificate authorities for verifying the server; empty to use the system's
            authorities.
        client_certificate: File with the client's certificate for mutual TLS; empty for none.
        client_key: File with the client's private key; empty for none.
        timeout: Timeout for one request, in seconds.
    """

    protocol: Protocol
    endpoint: str
    secure: bool
    headers: Mapping[str, str]
    gzip: bool = True
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""
    timeout: float = DEFAULT_TIMEOUT

    def __repr__(self) -> str:
        return f"OtlpTarget({self.protocol!r}, {self.endpoint!r}, headers={sorted(self.headers)})"


@dataclass(frozen=True)
class _Address:
    """A parsed endpoint. `url` and `netloc` contain no credentials."""

    url: str
    netloc: str
    secure: bool
    headers: Mapping[str, str]


def opentelemetry_endpoint(default: str, *, warn: bool) -> str | None:
    """Return the base URL in `OTEL_EXPORTER_OTLP_ENDPOINT`, without credentials.

    Args:
        default: Endpoint that replaces an invalid endpoint, as named in the warning.
        warn: Whether to warn about an invalid endpoint.

    Returns:
        URL, even for a gRPC endpoint; None if the variable is unset or invalid.
    """
    variable = f"{_PREFIX}ENDPOINT"
    text = environment.read(variable)
    if not text:
        return None
    if address := _parse_http(text):
        return address.url
    expected = "a URL such as http://collector:4318"
    if any(_is_grpc(signal) for signal in SIGNALS):
        address = _parse_grpc(text, insecure=_variable_insecure("metrics"))
        if address is not None and not _GRPC_NAME.fullmatch(address.netloc):
            return f"{'https' if address.secure else 'http'}://{address.netloc}"
        expected = "host:port, or a URL (for other gRPC name schemes, set TENSORMETER_EXPORTERS=otlp)"
    elif _parse_grpc(text, insecure=True):
        expected += " (for gRPC, set OTEL_EXPORTER_OTLP_PROTOCOL=grpc)"
    if warn:
        environment.ignore(variable, expected, default)
    return None


def belongs_to_opentelemetry(endpoint: str) -> bool:
    """Return whether an endpoint comes from `OTEL_EXPORTER_OTLP_ENDPOINT`.

    If so, OpenTelemetry's other variables, such as `OTEL_EXPORTER_OTLP_HEADERS`, apply to it. They must not apply to
    other endpoints, because headers often contain credentials.
    """
    if environment.read("TENSORMETER_ENDPOINT"):
        return False
    general = opentelemetry_endpoint("", warn=False)
    return general is not None and general.rstrip("/") == endpoint.rstrip("/")


def opentelemetry_timeout(variable: str = f"{_PREFIX}TIMEOUT") -> float | None:
    """Return the timeout in seconds. The value 0, which disables the timeout in OpenTelemetry, becomes one hour."""
    return environment.read_seconds(variable, 0.1, 3600, f"{DEFAULT_TIMEOUT:g} s", zero=3600.0)


def read_targets(
    destination: str, options: Mapping[str, str], timeout: float, *, default_endpoint: str | None = None
) -> dict[Signal, OtlpTarget]:
    """Return the target for each signal.

    Args:
        destination: Name of the destination, for messages.
        options: Options of the destination: `protocol`, `endpoint`, `compression`, `certificate`, `client_certificate`,
            `client_key`, `insecure`, `headers_variable`. Variables apply to missing or empty options.
        timeout: Value of the setting `export_timeout`. If it is the default, a signal's own variable takes precedence.
        default_endpoint: Base URL if neither an option nor a variable sets one; None for the protocol's default.

    Raises:
        SettingsError: An option is invalid.
    """
    return {signal: _Reader(destination, signal, options, default_endpoint).target(timeout) for signal in SIGNALS}


def signal_url(base: str, signal: Signal) -> str:
    """Return the URL for a signal, given an endpoint's base URL. The signal's path is inserted before any query."""
    parts = urlsplit(base)
    return parts._replace(path=f"{parts.path.rstrip('/')}/v1/{signal}").geturl()


class _Reader:
    """Reader of the options and variables for one signal of one destination."""

    def __init__(
        self, destination: str, signal: Signal, options: Mapping[str, str], default_endpoint: str | None
    ) -> None:
        self._destination = destination
        self._signal: Signal = signal
        self._options = {name: value.strip() for name, value in options.items() if value.strip()}
        self._default_endpoint = default_endpoint

    def target(self, timeout: float) -> OtlpTarget:
        protocol = self._protocol()
        address, whole = self._address(protocol)
        headers = dict(address.headers)
        variable = self._options.get("headers_variable") or _first_set(self._signal, "HEADERS")
        if variable:
            headers |= environment.read_headers(variable)
            if protocol == "grpc":
                headers = _grpc_metadata(variable, headers)
        certificate, client_certificate, client_key = self._certificates() if address.secure else ("", "", "")
        if protocol == "grpc":
            endpoint = address.netloc
        else:
            endpoint = address.url if whole else signal_url(address.url, self._signal)
        return OtlpTarget(
            protocol,
            endpoint,
            address.secure,
            headers,
            self._gzip(),
            certificate,
            client_certificate,
            client_key,
            self._timeout(timeout),
        )

    def _protocol(self) -> Protocol:
        given = self._options.get("protocol", "").lower()
        if not given:
            return _variable_protocol(self._signal)
        if given not in _DEFAULTS:
            raise SettingsError(
                f"{self._destination}.protocol: expected {join_choices(*_DEFAULTS)}; got {self._options['protocol']!r}"
            )
        return cast("Protocol", given)

    def _gzip(self) -> bool:
        given = self._options.get("compression", "").lower()
        if given and given not in _COMPRESSIONS:
            raise SettingsError(
                f"{self._destination}.compression: expected {join_choices(*_COMPRESSIONS)}; got {given!r}"
            )
        return (given or _first_word(self._signal, "COMPRESSION", _COMPRESSIONS, "gzip")) == "gzip"

    def _timeout(self, given: float) -> float:
        if given != (opentelemetry_timeout() or DEFAULT_TIMEOUT):
            return given  # the setting was set explicitly
        return opentelemetry_timeout(f"{_PREFIX}{self._signal.upper()}_TIMEOUT") or given

    def _address(self, protocol: Protocol) -> tuple[_Address, bool]:
        """Return the endpoint, and whether it is complete. If not, the signal's path is appended to it for HTTP."""

        def parse(text: str) -> _Address | None:
            return _parse_grpc(text, insecure=self._insecure()) if protocol == "grpc" else _parse_http(text)

        if given := self._options.get("endpoint"):
            address = parse(given)
            if address is None or address.headers:  # options are stored with the run, so they must not hold credentials
                shown = "one with credentials" if address or "@" in given else repr(given)
                raise SettingsError(
                    f"{self._destination}.endpoint: expected a URL such as {_DEFAULTS[protocol]}, got {shown}"
                )
            return address, False
        own, general = _names(self._signal, "ENDPOINT")
        default = self._default_endpoint or _DEFAULTS[protocol]
        usable = _first_usable((own, general), parse)
        address = usable[1] if usable else parse(default)
        if address is None:
            raise SettingsError(f"{self._destination}: expected an endpoint such as {_DEFAULTS[protocol]}")
        for variable in (own, general):
            if usable and variable == usable[0]:
                break
            if environment.read(variable):
                expected = "host:port, a URL, or a gRPC name" if protocol == "grpc" else "an http or https URL"
                environment.ignore(variable, f"{expected}, for {self._destination}", address.url)
        return address, usable is not None and usable[0] == own

    def _insecure(self) -> bool:
        given = self._options.get("insecure")
        return _variable_insecure(self._signal) if given is None else given.lower() == "true"

    def _certificates(self) -> tuple[str, str, str]:
        """Return the files for TLS: authorities, client certificate and client key.

        Files that variables name are tested first, because an invalid file must not stop delivery. Instead of invalid
        authorities, the system's authorities verify the server. Instead of an invalid client certificate, none is sent;
        a server that requires one then refuses the connection. In both cases, no data reaches the wrong server.
        """
        authorities = self._options.get("certificate", "")
        if not authorities:
            for variable in filter(environment.read, _names(self._signal, "CERTIFICATE")):
                if problem := _tls_problem(authorities=environment.read(variable)):
                    environment.warn_once(variable, f"{problem}; using the system's certificate authorities instead")
                    continue
                authorities = environment.read(variable)
                break
        certificate, key = self._options.get("client_certificate", ""), self._options.get("client_key", "")
        certificate_variable = "" if certificate else _first_set(self._signal, "CLIENT_CERTIFICATE")
        key_variable = "" if key else _first_set(self._signal, "CLIENT_KEY")
        key = key or environment.read(key_variable)
        certificate = certificate or environment.read(certificate_variable)
        if certificate_variable and (problem := _tls_problem(certificate=certificate, key=key)):
            environment.warn_once(certificate_variable, f"{problem}; no client certificate will be sent")
            return authorities, "", ""
        if key_variable and not certificate:
            environment.warn_once(key_variable, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is not set; ignoring the key")
            return authorities, "", ""
        return authorities, certificate, key


def _names(signal: Signal, name: str) -> tuple[str, str]:
    """Return the names of the signal's own variable and of the general variable."""
    return f"{_PREFIX}{signal.upper()}_{name}", f"{_PREFIX}{name}"


def _first_set(signal: Signal, name: str) -> str:
    return next(filter(environment.read, _names(signal, name)), "")


def _first_word(signal: Signal, name: str, words: tuple[str, ...], default: str) -> str:
    for variable in _names(signal, name):
        if word := environment.read_word(variable, words, default):
            return word
    return default


def _first_usable(variables: tuple[str, ...], parse: Callable[[str], _Value | None]) -> tuple[str, _Value] | None:
    for variable in filter(environment.read, variables):
        value = parse(environment.read(variable))
        if value is not None:
            return variable, value
    return None


def _variable_protocol(signal: Signal) -> Protocol:
    return cast("Protocol", _first_word(signal, "PROTOCOL", tuple(_DEFAULTS), "http/protobuf"))


def _is_grpc(signal: Signal) -> bool:
    """Return whether the signal's protocol is gRPC, without warning about an invalid protocol."""
    words = [environment.read(variable).lower() for variable in _names(signal, "PROTOCOL")]
    return next((word for word in words if word in _DEFAULTS), "") == "grpc"


def _variable_insecure(signal: Signal) -> bool:
    variable = _first_set(signal, "INSECURE")
    return bool(variable) and environment.read_flag(variable)


def _parse_http(text: str) -> _Address | None:
    address = _parse_url(text)
    return address if address is not None and address.url.startswith(("http://", "https://")) else None


def _parse_grpc(text: str, *, insecure: bool) -> _Address | None:
    """Parse an endpoint in any form that gRPC clients accept: `host:port`, a URL, or a gRPC name (`unix:`, `dns:`).

    Args:
        text: Endpoint to parse.
        insecure: Whether to omit TLS if the scheme is neither `https` nor `http`.
    """
    if _GRPC_NAME.fullmatch(text):
        return None if re.search(r"\s", text) else _Address(text, text, not insecure, {})
    address = _parse_url(text if "://" in text else f"{'http' if insecure else 'https'}://{text}")
    if address is None:
        return None
    scheme = urlsplit(address.url).scheme
    secure = scheme == "https" if scheme in ("http", "https") else not insecure
    host_and_port = address.netloc if re.search(r":\d+$", address.netloc) else f"{address.netloc}:4317"
    return _Address(address.url, host_and_port, secure, address.headers)


def _parse_url(text: str) -> _Address | None:
    """Parse a URL with a host. The user and password become the header `authorization`."""
    if not text.isprintable() or " " in text:
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port  # raises if the port is not a number
        if not parts.scheme or not host or port == 0:
            return None
        host = f"[{host}]" if ":" in host else host.encode("idna").decode()  # raises if a label is empty or too long
    except ValueError:
        return None
    netloc = host if port is None else f"{host}:{port}"
    headers = {}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["authorization"] = f"Basic {base64.b64encode(user.encode('utf-8', 'replace')).decode()}"
    return _Address(parts._replace(netloc=netloc, fragment="").geturl(), netloc, parts.scheme == "https", headers)


def _grpc_metadata(variable: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that gRPC can send, and warn about each one that is left out.

    Names that gRPC does not allow are left out. So are names that end in `-bin`, because their values must be bytes.
    """
    sendable = {name: value for name, value in headers.items() if _GRPC_KEY.fullmatch(name)}
    for name in headers.keys() - sendable.keys():
        environment.warn_once(variable, f"{name!r} is not a valid gRPC header name; ignoring it", secret=True)
    return sendable


def _tls_problem(*, authorities: str = "", certificate: str = "", key: str = "") -> str:
    """Return the reason why files cannot be used for TLS; empty if they can."""
    import ssl  # imported only if there are files for TLS

    try:
        with environment.key_log_usable():
            context = ssl.create_default_context(cafile=authorities or None)
        if certificate:
            # If a password is passed, OpenSSL does not ask for the password of an encrypted key on the terminal.
            context.load_cert_chain(certificate, key or None, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        return f"cannot be used ({error.strerror if isinstance(error, OSError) and error.strerror else error})"
    return ""
