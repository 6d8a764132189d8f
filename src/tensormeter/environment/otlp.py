"""The standard variables of OTLP exporters (OpenTelemetry specification, "OpenTelemetry Protocol Exporter").

For each: the destination's option first, then the signal's own variable, then the general one, then the default. An option
that cannot be used is an error. A variable that cannot be used is warned about and ignored (see `environment`).
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

from tensormeter.environment import variables as environment
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.errors import SettingsError

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
"""A name in gRPC's own syntax ("gRPC Name Resolution"), and no host with a port."""

_GRPC_KEY: Final = re.compile(r"[0-9a-z_.-]+(?<!-bin)")


@dataclass(frozen=True)
class OtlpTarget:
    """Where and how one signal is sent.

    Attributes:
        protocol: `grpc` or `http/protobuf`.
        endpoint: The whole URL for HTTP, `host:port` or another name for gRPC. Without credentials.
        secure: Whether TLS is used.
        headers: Names in lower case, and values. They may hold secrets and are in no `repr`.
        gzip: Whether bodies are sent compressed.
        certificate: File with the authorities that the server's certificate is checked against, or the system's if "".
        client_certificate: File with our own certificate for mutual TLS, or "".
        client_key: File with its key, or "".
        timeout: Seconds that sending one request may take.
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
    """An endpoint, taken apart. `url` and `netloc` have no credentials."""

    url: str
    netloc: str
    secure: bool
    headers: Mapping[str, str]


def opentelemetry_endpoint(default: str, *, warn: bool) -> str | None:
    """The base URL that `OTEL_EXPORTER_OTLP_ENDPOINT` gives, without credentials.

    Args:
        default: What is used instead of an endpoint that cannot be used.
        warn: Whether to warn about such an endpoint.

    Returns:
        None if the variable is unset, or cannot be used. An endpoint for gRPC becomes a URL, too.
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
        expected = "host:port, or a URL (for other names of gRPC, set TENSORMETER_EXPORTERS=otlp)"
    elif _parse_grpc(text, insecure=True):
        expected += " (for gRPC, set OTEL_EXPORTER_OTLP_PROTOCOL=grpc)"
    if warn:
        environment.ignore(variable, expected, default)
    return None


def belongs_to_opentelemetry(endpoint: str) -> bool:
    """Whether an endpoint is the one of `OTEL_EXPORTER_OTLP_ENDPOINT`, so that what the variables say of it counts.

    For any other endpoint it does not: headers often are credentials, and must not go to another host.
    """
    if environment.read("TENSORMETER_ENDPOINT"):
        return False
    general = opentelemetry_endpoint("", warn=False)
    return general is not None and general.rstrip("/") == endpoint.rstrip("/")


def opentelemetry_timeout(variable: str = f"{_PREFIX}TIMEOUT") -> float | None:
    """Seconds; 0 in the variable stands for no limit, and is the longest timeout there is: an hour."""
    return environment.read_seconds(variable, 0.1, 3600, f"{DEFAULT_TIMEOUT:g} s", zero=3600.0)


def read_targets(
    destination: str, options: Mapping[str, str], timeout: float, *, default_endpoint: str | None = None
) -> dict[Signal, OtlpTarget]:
    """The target of each signal.

    Args:
        destination: Its name, for messages.
        options: Its options: `protocol`, `endpoint`, `compression`, `certificate`, `client_certificate`, `client_key`,
            `insecure`, `headers_variable`. The variables count for what is missing or "".
        timeout: The setting `export_timeout`. A signal's own variable counts if the setting has no value of its own.
        default_endpoint: The base URL if neither an option nor a variable gives one; the protocol's own if None.

    Raises:
        SettingsError: An option cannot be used.
    """
    return {signal: _Reader(destination, signal, options, default_endpoint).target(timeout) for signal in SIGNALS}


def signal_url(base: str, signal: Signal) -> str:
    """Where a signal goes, from the base URL of an endpoint. The signal's path comes before a query of the base."""
    parts = urlsplit(base)
    return parts._replace(path=f"{parts.path.rstrip('/')}/v1/{signal}").geturl()


class _Reader:
    """Reads what there is for one signal of one destination."""

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
                f"{self._destination}: expected a protocol of {', '.join(_DEFAULTS)}, got {self._options['protocol']!r}"
            )
        return cast("Protocol", given)

    def _gzip(self) -> bool:
        given = self._options.get("compression", "").lower()
        if given and given not in _COMPRESSIONS:
            raise SettingsError(f"{self._destination}: expected a compression of gzip, none, got {given!r}")
        return (given or _first_word(self._signal, "COMPRESSION", _COMPRESSIONS, "gzip")) == "gzip"

    def _timeout(self, given: float) -> float:
        if given != (opentelemetry_timeout() or DEFAULT_TIMEOUT):
            return given  # the setting has a value of its own
        return opentelemetry_timeout(f"{_PREFIX}{self._signal.upper()}_TIMEOUT") or given

    def _address(self, protocol: Protocol) -> tuple[_Address, bool]:
        """The endpoint, and whether it is used as it is; if not, it is a base, to which HTTP adds the signal's path."""

        def parse(text: str) -> _Address | None:
            return _parse_grpc(text, insecure=self._insecure()) if protocol == "grpc" else _parse_http(text)

        if given := self._options.get("endpoint"):
            address = parse(given)
            if address is None or address.headers:  # options are kept with the run, so they hold no credentials
                shown = "one with credentials" if address or "@" in given else repr(given)
                raise SettingsError(
                    f"{self._destination}: expected an endpoint such as {_DEFAULTS[protocol]}, got {shown}"
                )
            return address, False
        own, general = _names(self._signal, "ENDPOINT")
        default = self._default_endpoint or _DEFAULTS[protocol]
        found = _first_usable((own, general), parse)
        address = found[1] if found else parse(default)
        if address is None:
            raise SettingsError(f"{self._destination}: expected an endpoint such as {_DEFAULTS[protocol]}")
        for variable in (own, general):
            if found and variable == found[0]:
                break
            if environment.read(variable):
                expected = "host:port, a URL, or a name of gRPC" if protocol == "grpc" else "an http or https URL"
                environment.ignore(variable, f"{expected}, for {self._destination}", address.url)
        return address, found is not None and found[0] == own

    def _insecure(self) -> bool:
        given = self._options.get("insecure")
        return _variable_insecure(self._signal) if given is None else given.lower() == "true"

    def _certificates(self) -> tuple[str, str, str]:
        """Files for TLS. Those that variables name are tried out, because an unusable one must not stop delivery.

        Without them, the connection is checked against the system's authorities and has no certificate of ours: a server
        that needs more refuses it, so nothing goes to the wrong one.
        """
        authorities = self._options.get("certificate", "")
        if not authorities:
            for variable in filter(environment.read, _names(self._signal, "CERTIFICATE")):
                if problem := _tls_problem(authorities=environment.read(variable)):
                    environment.warn_once(variable, f"{problem}; the system's authorities are used instead")
                    continue
                authorities = environment.read(variable)
                break
        certificate, key = self._options.get("client_certificate", ""), self._options.get("client_key", "")
        certificate_variable = "" if certificate else _first_set(self._signal, "CLIENT_CERTIFICATE")
        key_variable = "" if key else _first_set(self._signal, "CLIENT_KEY")
        key = key or environment.read(key_variable)
        certificate = certificate or environment.read(certificate_variable)
        if certificate_variable and (problem := _tls_problem(certificate=certificate, key=key)):
            environment.warn_once(certificate_variable, f"{problem}; no certificate of ours is sent")
            return authorities, "", ""
        if key_variable and not certificate:
            environment.warn_once(
                key_variable, "there is no OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE; the key is not used"
            )
            return authorities, "", ""
        return authorities, certificate, key


def _names(signal: Signal, name: str) -> tuple[str, str]:
    """The signal's own variable, and the general one."""
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
    """Whether the signal's protocol is gRPC, without a warning if there is none that can be used."""
    words = [environment.read(variable).lower() for variable in _names(signal, "PROTOCOL")]
    return next((word for word in words if word in _DEFAULTS), "") == "grpc"


def _variable_insecure(signal: Signal) -> bool:
    variable = _first_set(signal, "INSECURE")
    return bool(variable) and environment.read_flag(variable)


def _parse_http(text: str) -> _Address | None:
    address = _parse_url(text)
    return address if address is not None and address.url.startswith(("http://", "https://")) else None


def _parse_grpc(text: str, *, insecure: bool) -> _Address | None:
    """An endpoint in any form that gRPC clients take: `host:port`, a URL, or a name of gRPC's own (`unix:`, `dns:`).

    Args:
        text: The endpoint.
        insecure: Whether no TLS is used, if the scheme does not say: it is `https` or `http`, or another.
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
    """A URL with a host. User and password become the header `authorization`."""
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
    """Headers that gRPC can send. Keys that end in `-bin` would need bytes."""
    sendable = {name: value for name, value in headers.items() if _GRPC_KEY.fullmatch(name)}
    for name in headers.keys() - sendable.keys():
        environment.warn_once(variable, f"gRPC has no header {name!r}; it is left out", secret=True)
    return sendable


def _tls_problem(*, authorities: str = "", certificate: str = "", key: str = "") -> str:
    """Why files cannot be used for TLS, or ""."""
    import ssl  # only where there are such files

    try:
        with environment.key_log_usable():
            context = ssl.create_default_context(cafile=authorities or None)
        if certificate:
            # With a password, so that OpenSSL does not ask a terminal for that of an encrypted key.
            context.load_cert_chain(certificate, key or None, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        return f"cannot be used ({error.strerror if isinstance(error, OSError) and error.strerror else error})"
    return ""
