"""The command `tensormeter serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from tensormeter.cli.earlier_runs import deliver_waiting_runs
from tensormeter.cli.maintain import data_option, need_server
from tensormeter.errors import SettingsError, UsageError
from tensormeter.settings import DEFAULT_PORT

if TYPE_CHECKING:
    from tensormeter.server import ServerConfig
    from tensormeter.server.store.clickhouse import Address

__all__ = ["parse_store", "serve"]

_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to bind; an address that other machines can reach requires a token.",
)
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="Port to bind; 0 selects a free one.")
@data_option
@click.option(
    "--store",
    metavar="URL",
    help="Store the data in ClickHouse: clickhouse://[USER@]HOST[:PORT]/DATABASE; see docs/server.md."
    "  [default: $TENSORMETER_STORE, or a SQLite file in --data]",
)
@click.option("--print-schema", is_flag=True, help="Print the SQL that creates the tables for --store, and exit.")
@click.option(
    "--token-file",
    type=_FILE,
    help="File that contains a token with all permissions, which clients must send.  [default: $TENSORMETER_TOKEN, or none]",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Additional host name by which clients reach this server; requires a token. May be repeated.",
)
@click.option(
    "--stall-after",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds without data after which a run that has not ended counts as stalled.",
)
@click.option(
    "--retention-days",
    type=click.FloatRange(min=0, min_open=True),
    help="Age in days at which points and inactive runs are deleted.  [default: never]",
)
@click.option(
    "--retention-bytes",
    type=click.IntRange(min=1 << 20),
    help="Maximum size of the store in bytes; above it, the oldest ended runs are deleted.  [default: no limit]",
)
@click.option(
    "--durability",
    type=click.Choice(("group", "always")),
    default="group",
    show_default=True,
    help="When the server responds to a write. With group, it responds immediately, and syncs the data to disk within two seconds. With always, it responds after the sync; use this for senders that do not resend data lost in a power failure.",
)
@click.option(
    "--alerts",
    "alerts_file",
    type=_FILE,
    help="TOML file with alert rules and webhooks.  [default: standard rules, no webhook]",
)
@click.option("--tls-cert", type=_FILE, help="PEM file with the certificate for HTTPS.  [default: http]")
@click.option("--tls-key", type=_FILE, help="PEM file with the certificate's private key, without a passphrase.")
@click.option(
    "--forwarded-allow-ips",
    default="",
    metavar="ADDRESSES",
    help="Comma-separated addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto headers are trusted; requires a token."
    "  [default: none]",
)
@click.option(
    "--max-connections",
    default=2048,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of connections. Once they are open, the server closes one that is waiting for its client whenever another client connects. If it cannot close any, it responds to the new connection with 503.",
)
@click.option(
    "--header-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True, max_open=True),
    help="Maximum time for a client to send the headers of a request, in seconds.",
)
@click.option(
    "--send-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True, max_open=True),
    help="Seconds without progress after which the server closes a connection whose client does not read its response.",
)
@click.option(
    "--self-metrics",
    multiple=True,
    type=click.Choice(("store", "otlp")),
    help="Destination of the server's own metrics. With store, the server writes them to a project in its store. With otlp, it sends them to the OTLP endpoint that OpenTelemetry's variables set. Repeat the option to use both.  [default: none]",
)
@click.option(
    "--log-format", type=click.Choice(("text", "json")), default="text", show_default=True, help="Log format."
)
@click.option("--access-log", is_flag=True, help="Log each request, without its query string and token.")
@click.option("--alert-interval", default=5.0, show_default=True, type=click.FloatRange(min=0.05), hidden=True)
def serve(
    *,
    host: str,
    port: int,
    directory: Path | None,
    store: str | None,
    print_schema: bool,
    token_file: Path | None,
    alerts_file: Path | None,
    log_format: Literal["text", "json"],
    access_log: bool,
    **limits: Any,
) -> None:
    """Start a server, which runs until Ctrl-C or SIGTERM.

    At startup, it also collects data that earlier runs on this machine have left for it in their spools.
    """
    need_server()
    from tensormeter import server

    options: dict[str, Any] = {} if directory is None else {"directory": directory}
    address = store or os.environ.get("TENSORMETER_STORE")
    if address:
        options["clickhouse"] = parse_store(address)
    if print_schema:
        _print_schema(options.get("clickhouse"), limits["retention_days"])
        return
    if alerts_file is not None:
        options["alerts"] = server.load_alert_config(alerts_file)
    token = _read_token(token_file)
    server.configure_logs(log_format, access=access_log)
    config = server.ServerConfig(host=host, port=port, token=token, **options, **limits)
    server.serve(config, lambda url: _on_ready(url, config))


def _on_ready(url: str, config: "ServerConfig") -> None:
    click.echo(f"tensormeter: serving on {url} (data in {config.clickhouse or config.directory})")
    deliver_waiting_runs(url, config.token or config.own_token)


def parse_store(text: str) -> "Address":
    """Parse the URL of a ClickHouse database.

    Raise UsageError if a package is missing, or SettingsError if the URL is invalid.
    """
    try:
        from tensormeter.server.store.clickhouse import parse_address
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--store: the package {error.name!r} is not installed; run pip install 'tensormeter[clickhouse]'"
        ) from None
    return parse_address(text)


def _print_schema(address: "Address | None", retention_days: float | None) -> None:
    if address is None:
        raise UsageError("--print-schema: SQLite creates its tables itself; set --store clickhouse://HOST/DATABASE")
    from tensormeter.server.store.clickhouse.schema import statements

    for statement in statements(address.database, address.cluster, retention_days):
        click.echo(f"{statement};\n")


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("TENSORMETER_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--token-file {file}: cannot read the file ({error})") from None
