"""What a server is started with."""

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
"""OTLP's own limit for a request."""


def _default_directory() -> Path:
    folder = os.environ.get("TENSORMETER_SERVER_DIR", "")
    return Path(folder) if folder.strip() else user_data_folder() / "server"


def _data_folder(path: Path) -> Path:
    if NO_FOLDER in Path(path).parents:
        raise SettingsError("this user has no home folder: give --data, or set TENSORMETER_SERVER_DIR or HOME")
    try:
        return Path(path).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise SettingsError(f"directory: expected a path, got {str(path)!r} ({error})") from None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a server.

    Attributes:
        host: Address to bind: a name or an IP address.
        port: Port to bind; 0 takes any free one.
        directory: Where the SQLite store and the file of tokens are; by default `TENSORMETER_SERVER_DIR`, else the user's data
            folder.
        clickhouse: Where a store in ClickHouse is, instead of the one in SQLite.
        token: Bearer token that may do everything, beside those of the folder's `TokenFile`, or None. A server that others than
            this machine can reach needs it, or a token in the file; see `is_local`.
        own_token: Token with which the server's own process may send; made at random.
        allowed_hosts: Further names, without port, by which clients may call this server. Any but those of loopback says that
            others than this machine can reach it.
        max_body_bytes: Limit on the body of a request, before and after decompression.
        stall_after: Seconds of silence after which a run that has not ended counts as stalled.
        retention_days: Age at which points, and runs that nothing was heard of, are deleted; None: never.
        retention_bytes: Size of the store above which the oldest ended runs are deleted; None: never.
        durability: When a request is answered: `group` at once, and its content is synced to disk together with others at the
            latest two seconds later; `always` after the sync. Of the SQLite store.
        alerts: What to look for in what arrives, and whom to tell.
        alert_interval: Seconds between two looks.
        tls_cert: File with the certificate, and those between it and the authority, in PEM; with `tls_key`. A new one in its
            place is shown to new connections.
        tls_key: File with its private key, without a passphrase.
        forwarded_allow_ips: Addresses and networks, between commas, of proxies whose `X-Forwarded-For` and
            `X-Forwarded-Proto` are believed; "" for none. Any says that others than this machine can reach the server.
        self_metrics: Where metrics of the server itself go: `store`, its own one, as a project; `otlp`, as OpenTelemetry's
            variables say.
        max_connections: Open at once. Beyond that the oldest one that waits for its client gives way, of the address with the
            most of them; if none waits, a new one is answered 503.
        header_timeout: Seconds in which the headers of a request must have come.
        send_timeout: Seconds without progress after which a client that does not read its answer is given up.

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
            raise SettingsError("retention_bytes: ClickHouse does not bound a database; use retention_days, or TTLs")
        if self.durability not in DURABILITIES:
            raise SettingsError(f"durability: expected {' or '.join(DURABILITIES)}, got {self.durability!r}")
        if self.clickhouse is not None and self.durability != "group":
            raise SettingsError(
                "durability: ClickHouse decides when it syncs; put its settings into --store (docs/server.md names them)"
            )
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
        if self.max_connections < 1:
            raise SettingsError(f"max_connections: expected 1 or more, got {self.max_connections}")
        for name in ("header_timeout", "send_timeout"):
            if not 0 < getattr(self, name) < 3600:
                raise SettingsError(f"{name}: expected seconds, up to an hour, got {getattr(self, name)}")
        # Not shown: it is a secret, even when it is wrong.
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.split()):
            raise SettingsError("token: expected printable ASCII characters; generate one with `openssl rand -hex 32`")
        if self.token is not None and " " in self.token:
            raise SettingsError("token: expected no spaces inside; generate one with `openssl rand -hex 32`")
        reason = self._open_by()
        if self.token is None and reason is not None and not TokenFile(self.directory).tokens():
            raise SettingsError(
                f"{reason}, so a token is needed; make one with `tensormeter token create`, set TENSORMETER_TOKEN or give "
                "--token-file, or serve this machine alone: bind 127.0.0.1, without --allowed-host and --forwarded-allow-ips",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server, as far as its settings say; then it may do without tokens."""
        return self._open_by() is None

    def _open_by(self) -> str | None:
        """The setting by which others than this machine can reach the server, in words; None: there is none."""
        if not is_loopback(self.host):
            return f"host: {self.host!r} can be reached from other machines"
        names = sorted(name for name in self.allowed_hosts if not is_loopback(name))
        if names:
            return f"allowed_hosts: the server is reached by the name {names[0]!r}, from other machines too"
        if self.forwarded_allow_ips:
            return f"forwarded_allow_ips: the server is reached through a proxy ({self.forwarded_allow_ips}), by others too"
        return None


def _host_name(text: str) -> str:
    """A name, or an address without brackets, as it is compared with what clients send.

    Raises:
        SettingsError: It cannot be one.
    """
    name = text.strip().lower()
    try:
        parts = urlsplit(f"//[{name}]" if name.count(":") > 1 and not name.startswith("[") else f"//{name}")
        found = parts.hostname if parts.port is None and "@" not in name and parts.netloc and not parts.path else None
    except ValueError:
        found = None
    if not found or "*" in found or " " in found:
        raise SettingsError(
            f"allowed_hosts: expected a name or an address, without port or wildcard, got {text!r}; give each name, and a token"
        )
    return found


def _proxies(text: str) -> str:
    """Addresses and networks between commas.

    Raises:
        SettingsError: One of them is none.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if "*" in part:
            raise SettingsError(
                f"forwarded_allow_ips: expected addresses of proxies, got {part!r}: anyone could claim to be one"
            )
        try:
            network = ipaddress.ip_network(part)
        except ValueError:
            raise SettingsError(
                f"forwarded_allow_ips: expected addresses or networks of proxies between commas, got {part!r}"
            ) from None
        if network.prefixlen == 0:
            raise SettingsError(
                f"forwarded_allow_ips: expected addresses of proxies, got {part!r}: anyone could claim to be one"
            )
    return ",".join(found)
