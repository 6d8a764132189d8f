"""What a server is started with."""

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import platformdirs

from tensormeter.errors import SettingsError
from tensormeter.server.alerts import AlertConfig
from tensormeter.server.tls import load_certificate
from tensormeter.server.tokens import TokenFile
from tensormeter.settings import DEFAULT_PORT, is_loopback

if TYPE_CHECKING:
    from tensormeter.server.store.clickhouse import Address

__all__ = ["MAX_BODY_BYTES", "SelfMetrics", "ServerConfig"]

SelfMetrics = Literal["store", "otlp"]

MAX_BODY_BYTES: Final = 64 << 20
"""OTLP's own limit for a request."""


def _default_directory() -> Path:
    folder = os.environ.get("TENSORMETER_SERVER_DIR")
    return Path(folder) if folder else platformdirs.user_data_path("tensormeter") / "server"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        host: Address to bind: a name or an IP address.
        port: Port to bind; 0 takes any free one.
        directory: Where the SQLite store and the file of tokens are; by default `TENSORMETER_SERVER_DIR`, else the user's data
            folder.
        clickhouse: Where a store in ClickHouse is, instead of the one in SQLite.
        token: Bearer token that may do everything, beside those of the folder's `TokenFile`, or None. Anything but a
            loopback host needs it, or a token in the file.
        own_token: Token with which the server's own process may send; made at random.
        allowed_hosts: Further names, without port, by which clients may call this server.
        max_body_bytes: Limit on the body of a request, before and after decompression.
        stall_after: Seconds of silence after which a run that has not ended counts as stalled.
        retention_days: Age at which points, and runs that nothing was heard of, are deleted; None: never.
        retention_bytes: Size of the store above which the oldest ended runs are deleted; None: never.
        alerts: What to look for in what arrives, and whom to tell.
        alert_interval: Seconds between two looks.
        tls_cert: File with the certificate, and those between it and the authority, in PEM; with `tls_key`. A new one in its
            place is shown to new connections.
        tls_key: File with its private key, without a passphrase.
        forwarded_allow_ips: Addresses and networks, between commas, of proxies whose `X-Forwarded-For` and
            `X-Forwarded-Proto` are believed; "" for none.
        self_metrics: Where metrics of the server itself go: `store`, its own one, as a project; `otlp`, as OpenTelemetry's
            variables say.
        max_connections: Open at once; what is beyond is answered 503.
        header_timeout: Seconds in which the headers of a request must have come.

    Raises:
        SettingsError: A value cannot be used; the message says what to do.
        StoreError: The file of tokens is needed and cannot be read.
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
    alerts: AlertConfig = field(default_factory=AlertConfig)
    alert_interval: float = 5.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    forwarded_allow_ips: str = ""
    self_metrics: Sequence[SelfMetrics] = ()
    max_connections: int = 2048
    header_timeout: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory).expanduser().absolute())
        object.__setattr__(self, "allowed_hosts", frozenset(host.lower() for host in self.allowed_hosts))
        if self.clickhouse is not None and self.retention_bytes is not None:
            raise SettingsError("retention_bytes: ClickHouse does not bound a database; use retention_days, or TTLs")
        if not self.host:
            raise SettingsError("host: expected a name or an IP address, got ''")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port: expected 0 to 65535, got {self.port}")
        if self.max_body_bytes < 1:
            raise SettingsError(f"max_body_bytes: expected 1 or more, got {self.max_body_bytes}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("tls_cert, tls_key: expected both or none; a certificate is of no use without its key")
        if self.tls_cert is not None and self.tls_key is not None:
            load_certificate(self.tls_cert, self.tls_key)
        if "*" in self.forwarded_allow_ips:
            raise SettingsError(
                "forwarded_allow_ips: expected addresses of proxies, got '*': anyone could claim to be one"
            )
        if self.max_connections < 1:
            raise SettingsError(f"max_connections: expected 1 or more, got {self.max_connections}")
        if not 0 < self.header_timeout < 3600:
            raise SettingsError(f"header_timeout: expected seconds, up to an hour, got {self.header_timeout}")
        # Not shown: it is a secret, even when it is wrong.
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.split()):
            raise SettingsError("token: expected printable ASCII characters; generate one with `openssl rand -hex 32`")
        if self.token is not None and " " in self.token:
            raise SettingsError("token: expected no spaces inside; generate one with `openssl rand -hex 32`")
        if self.token is None and not is_loopback(self.host) and not TokenFile(self.directory).tokens():
            raise SettingsError(
                f"host: {self.host!r} can be reached from other machines, so a token is needed; make one with "
                "`tensormeter token create`, set TENSORMETER_TOKEN or give --token-file, or bind 127.0.0.1",
            )
