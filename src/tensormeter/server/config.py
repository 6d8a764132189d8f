"""Server settings."""

import ipaddress
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from tensormeter.disk.user_folders import NO_FOLDER, user_data_folder
from tensormeter.errors import SettingsError
from tensormeter.server.alerts import AlertConfig
from tensormeter.server.auth.tokens import TokenFile
from tensormeter.server.http.tls import load_certificate
from tensormeter.server.store.models.durability import DURABILITIES, ServerDurability
from tensormeter.settings import DEFAULT_PORT, is_loopback

if TYPE_CHECKING:
    from tensormeter.server.store.clickhouse import Address

__all__ = ["MAX_BODY_BYTES", "SelfMetrics", "ServerConfig"]

SelfMetrics = Literal["store", "otlp"]

MAX_BODY_BYTES: Final = 64 << 20
"""Maximum size of an OTLP request in bytes, as recommended by the OTLP specification."""


def _default_directory() -> Path:
    folder = os.environ.get("TENSORMETER_SERVER_DIR", "")
    return Path(folder) if folder.strip() else user_data_folder() / "server"


def _data_folder(path: Path) -> Path:
    if NO_FOLDER in Path(path).parents:
        raise SettingsError("directory: this user has no home folder; set --data, TENSORMETER_SERVER_DIR or HOME")
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise SettingsError(f"directory: expected a path, got {str(path)!r} ({error})") from None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Server settings.

    Attributes:
        host: Host name or IP address to bind to.
        port: Port to bind to; 0 selects a free port.
        directory: Folder for the SQLite store and the token file. Default: `TENSORMETER_SERVER_DIR`, or else the folder
            `server` in tensormeter's user data folder.
        clickhouse: Address of a ClickHouse store, which replaces the SQLite store.
        token: Server token, a bearer token with all permissions; None for no server token. The tokens in the
            `TokenFile` of `directory` are valid too. A server that other machines can reach requires a server token or
            a token in the file (see `is_local`).
        own_token: Random token with which the server's own process sends data.
        allowed_hosts: Additional host names, without port, that clients may use for this server. A name other than a
            loopback name implies that other machines can reach the server.
        max_body_bytes: Maximum size of a request body in bytes, both before and after decompression.
        stall_after: Seconds without data after which an unfinished run counts as stalled.
        retention_days: Age at which points and inactive runs are deleted, in days; None to keep them forever.
        retention_bytes: Size of the SQLite store, in bytes, above which ended runs are deleted; None for no limit.
            Archived runs are deleted first, then the runs whose data arrived longest ago.
        durability: When the server responds to a write to the SQLite store. With `group`, it responds
            immediately, and the store syncs the write to disk within two seconds, together with other writes. With `always`,
            the server responds after the sync.
        alerts: Alert rules and notification destinations.
        alert_interval: Interval between evaluations of the alert rules, in seconds.
        tls_cert: PEM file with the certificate and its intermediate certificates; requires `tls_key`. If the file is
            replaced, new connections use the new certificate immediately.
        tls_key: PEM file with the private key, without a passphrase.
        forwarded_allow_ips: Comma-separated addresses and networks of proxies whose `X-Forwarded-For` and
            `X-Forwarded-Proto` headers are trusted; "" for none. Configuring a proxy implies that other machines can
            reach the server.
        self_metrics: Destinations of the server's own metrics: `store` writes them to a project in this server's store;
            `otlp` sends them as configured by OpenTelemetry's environment variables.
        max_connections: Maximum number of open connections. At this limit, a new connection can evict one that waits
            for its client. If none can be evicted, the new connection gets status 503. With TLS, the new connection is
            closed without a response.
        header_timeout: Maximum time to receive a request's headers in seconds.
        send_timeout: Seconds without progress after which the server closes a connection whose client is not reading
            the response.

    Raises:
        SettingsError: A value is invalid; the message suggests a remedy.
        StoreError: The token file is required but cannot be read.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    directory: Path = field(default_factory=_default_directory)
    clickhouse: "Address | None" = None
    token: str | None = field(default=None, repr=False)
    own_token: str = field(default_factory=secrets.token_hex, repr=False)
    allowed_hosts: Iterable[str] = ()
    max_body_bytes: int = MAX_BODY_BYTES
    stall_after: float = 300.0
    retention_days: float | None = None
    retention_bytes: int | None = None
    durability: ServerDurability = "group"
    alerts: AlertConfig = field(default_factory=AlertConfig)
    alert_interval: float = 5.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    forwarded_allow_ips: str = ""
    self_metrics: Sequence[SelfMetrics] = ()
    max_connections: int = 2048
    header_timeout: float = 30.0
    send_timeout: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", _data_folder(self.directory))
        object.__setattr__(self, "allowed_hosts", frozenset(map(_host_name, self.allowed_hosts)))
        object.__setattr__(self, "forwarded_allow_ips", _proxies(self.forwarded_allow_ips))
        if self.clickhouse is not None and self.retention_bytes is not None:
            raise SettingsError(
                "retention_bytes: a ClickHouse store has no size limit; use retention_days, or TTLs in ClickHouse"
            )
        if self.durability not in DURABILITIES:
            raise SettingsError(f"durability: expected {' or '.join(DURABILITIES)}, got {self.durability!r}")
        if self.clickhouse is not None and self.durability != "group":
            raise SettingsError(
                "durability: ClickHouse decides when it syncs; add ClickHouse settings to the address in --store (see docs/server.md)"
            )
        if not self.host:
            raise SettingsError("host: expected a name or an IP address, got ''")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port: expected 0 to 65535, got {self.port}")
        if self.max_body_bytes < 1:
            raise SettingsError(f"max_body_bytes: expected 1 or more, got {self.max_body_bytes}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("tls_cert, tls_key: a certificate needs its key; set both or neither")
        if self.tls_cert is not None and self.tls_key is not None:
            load_certificate(self.tls_cert, self.tls_key)
        if self.max_connections < 1:
            raise SettingsError(f"max_connections: expected 1 or more, got {self.max_connections}")
        for name in ("header_timeout", "send_timeout"):
            if not 0 < getattr(self, name) < 3600:
                raise SettingsError(
                    f"{name}: expected a number of seconds above 0 and below 3600, got {getattr(self, name)}"
                )
        # The messages omit the value, because even a wrong token is a secret.
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.split()):
            raise SettingsError("token: expected printable ASCII characters; generate one with `openssl rand -hex 32`")
        if self.token is not None and " " in self.token:
            raise SettingsError("token: expected no spaces; generate one with `openssl rand -hex 32`")
        reason = self._reachable_by()
        if self.token is None and reason is not None and not TokenFile(self.directory).tokens():
            raise SettingsError(
                f"{reason}, so the server needs a token: create one with `tensormeter token create`, set TENSORMETER_TOKEN or use "
                "--token-file. To serve only this machine, bind 127.0.0.1, without --allowed-host and --forwarded-allow-ips",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server, according to the settings. If so, tokens are optional."""
        return self._reachable_by() is None

    def _reachable_by(self) -> str | None:
        """Describe the setting that lets other machines reach the server, or return None if there is none."""
        if not is_loopback(self.host):
            return f"host: {self.host!r} is reachable from other machines"
        names = sorted(name for name in self.allowed_hosts if not is_loopback(name))
        if names:
            return f"allowed_hosts: other machines can reach the server as {names[0]!r}"
        if self.forwarded_allow_ips:
            return f"forwarded_allow_ips: others can reach the server through a proxy ({self.forwarded_allow_ips})"
        return None


def _host_name(text: str) -> str:
    """Normalize a host name, or an address without brackets, for comparison with the `Host` header.

    Raises:
        SettingsError: The text is neither a host name nor an address.
    """
    name = text.strip().lower()
    try:
        parts = urlsplit(f"//[{name}]" if name.count(":") > 1 and not name.startswith("[") else f"//{name}")
        host = parts.hostname if parts.port is None and "@" not in name and parts.netloc and not parts.path else None
    except ValueError:
        host = None
    if not host or "*" in host or " " in host:
        raise SettingsError(
            f"allowed_hosts: expected a name or an address, without port or wildcard, got {text!r}; list each name"
        )
    return host


def _proxies(text: str) -> str:
    """Normalize a comma-separated list of addresses and networks.

    Raises:
        SettingsError: An entry is neither an address nor a network, or it covers all addresses.
    """
    networks = [part.strip() for part in text.split(",") if part.strip()]
    for part in networks:
        if "*" in part:
            raise SettingsError(
                f"forwarded_allow_ips: expected addresses of proxies, got {part!r}, which would trust every client"
            )
        try:
            network = ipaddress.ip_network(part)
        except ValueError:
            raise SettingsError(
                f"forwarded_allow_ips: expected comma-separated addresses or networks of proxies, got {part!r}"
            ) from None
        if network.prefixlen == 0:
            raise SettingsError(
                f"forwarded_allow_ips: expected addresses of proxies, got {part!r}, which would trust every client"
            )
    return ",".join(networks)
