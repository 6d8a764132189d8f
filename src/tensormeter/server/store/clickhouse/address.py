"""Addresses of ClickHouse databases.

The format of an address is `clickhouse://[USER@]HOST[:PORT][/DATABASE][?secure=true&cluster=NAME&SETTING=VALUE...]`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tensormeter.errors import SettingsError

__all__ = ["PASSWORD_VARIABLE", "Address", "parse_address"]

PASSWORD_VARIABLE: Final = "TENSORMETER_CLICKHOUSE_PASSWORD"  # noqa: S105 - the name of the variable
USER_VARIABLE: Final = "TENSORMETER_CLICKHOUSE_USER"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CLUSTER: Final = re.compile(r"[A-Za-z0-9_.{}-]{1,64}")
_FORM: Final = "clickhouse://HOST[:PORT]/DATABASE?secure=true&cluster=NAME"


@dataclass(frozen=True)
class Address:
    """The address of a ClickHouse database, which is accessed over HTTP.

    Attributes:
        cluster: Name of the cluster that shards and replicates the tables; "" for a single server.
        settings: ClickHouse settings to send with every statement.
        password: Password, which is omitted from the string form.
    """

    host: str
    port: int
    database: str
    user: str
    secure: bool = False
    cluster: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return a string without credentials, for display and logs."""
        return f"clickhouse://{self.host}:{self.port}/{self.database}"


def parse_address(text: str, environment: Mapping[str, str] | None = None) -> Address:
    """Parse an address, and read user and password from the environment.

    Args:
        text: Address in this module's format. It must not contain a password, because any user on the machine can read
            command lines.
        environment: Environment variables; None for `os.environ`. `TENSORMETER_CLICKHOUSE_PASSWORD` contains the
            password, and `TENSORMETER_CLICKHOUSE_USER` contains the user if `text` does not.

    Raises:
        SettingsError: The text is not a valid address. The message does not contain the whole text, because the text
            may contain a secret.
    """
    environment = os.environ if environment is None else environment
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise SettingsError(f"store: cannot read the address; expected {_FORM}") from None
    if parts.password is not None:
        raise SettingsError(f"store: the address contains a password; leave it out and set {PASSWORD_VARIABLE}")
    if parts.scheme != "clickhouse" or not parts.hostname:
        raise SettingsError(f"store: expected {_FORM}, got the scheme {parts.scheme!r} and the host {parts.hostname!r}")
    database = parts.path.strip("/") or "tensormeter"
    if not _NAME.fullmatch(database):
        raise SettingsError(f"store: {database[:80]!r} is not a database name; use letters, digits and '_'")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    secure = options.pop("secure", "false").lower()
    if secure not in ("true", "false"):
        raise SettingsError(f"store: secure: expected true or false, got {secure[:80]!r}")
    cluster = options.pop("cluster", "")
    if cluster and not _CLUSTER.fullmatch(cluster):
        raise SettingsError(f"store: {cluster[:80]!r} is not a cluster name; use letters, digits, '_', '-' and '.'")
    for name in options:
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"store: {name[:80]!r} is not the name of a ClickHouse setting; use letters, digits and '_'"
            )
    return Address(
        host=parts.hostname,
        port=port or (8443 if secure == "true" else 8123),
        database=database,
        user=unquote(parts.username or "") or environment.get(USER_VARIABLE) or "default",
        secure=secure == "true",
        cluster=cluster,
        settings=options,
        password=environment.get(PASSWORD_VARIABLE, ""),
    )
