"""`tensormeter serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from tensormeter.cli.deliver_waiting import deliver_waiting_runs
from tensormeter.errors import SettingsError, UsageError
from tensormeter.settings import DEFAULT_PORT

if TYPE_CHECKING:
    from tensormeter.server import ServerConfig
    from tensormeter.server.store.clickhouse import Address

__all__ = ["parse_store", "serve"]

_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; any but loopback needs a token.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="Port to bind; 0 takes any free one.")
@click.option(
    "--data",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the store.  [default: $TENSORMETER_SERVER_DIR, or the user's data folder]",
)
@click.option(
    "--store",
    metavar="URL",
    help="Keep everything in ClickHouse: clickhouse://[USER@]HOST[:PORT]/DATABASE; see docs/server.md."
    "  [default: $TENSORMETER_STORE, or a SQLite file in --data]",
)
@click.option("--print-schema", is_flag=True, help="Print the statements that make the tables of --store, and exit.")
@click.option(
    "--token-file",
    type=_FILE,
    help="File with the bearer token that clients must send.  [default: $TENSORMETER_TOKEN, or none]",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Name by which clients call this server, from other machines too, so it needs a token; may be repeated.",
)
@click.option(
    "--stall-after",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds of silence after which a run that has not ended counts as stalled.",
)
@click.option(
    "--retention-days", type=click.FloatRange(min=0, min_open=True), help="Delete what is older.  [default: never]"
)
@click.option(
    "--retention-bytes",
    type=click.IntRange(min=1 << 20),
    help="Delete the oldest ended runs when the store is larger.  [default: never]",
)
@click.option(
    "--durability",
    type=click.Choice(("group", "always")),
    default="group",
    show_default=True,
    help="Answer at once and sync to disk in groups, within two seconds; or answer after the sync, for senders that do not "
    "send again what a loss of power took.",
)
@click.option(
    "--alerts",
    "alerts_file",
    type=_FILE,
    help="TOML file with rules and webhooks.  [default: some rules, no webhook]",
)
@click.option("--tls-cert", type=_FILE, help="Certificate, in PEM, to serve https with.  [default: http]")
@click.option("--tls-key", type=_FILE, help="Its private key, in PEM, without a passphrase.")
@click.option(
    "--forwarded-allow-ips",
    default="",
    metavar="ADDRESSES",
    help="Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, between commas; needs a token.  [default: none]",
)
@click.option(
    "--max-connections",
    default=2048,
    show_default=True,
    type=click.IntRange(min=1),
    help="Connections at once; beyond that, idle and half-open ones give way, or new ones are answered 503.",
)
@click.option(
    "--header-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True, max_open=True),
    help="Seconds in which the headers of a request must have come.",
)
@click.option(
    "--send-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True, max_open=True),
    help="Seconds after which a client that reads nothing of its answer is given up.",
)
@click.option(
    "--self-metrics",
    multiple=True,
    type=click.Choice(("store", "otlp")),
    help="Where the server's own metrics go: its store, as a project, or as OpenTelemetry's variables say; may be repeated.  "
    "[default: nowhere]",
)
@click.option("--log-format", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("--access-log", is_flag=True, help="Log every request, without what was asked and without tokens.")
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
    """Start an experiment server; it runs until Ctrl-C or SIGTERM.

    It also takes in what earlier runs on this machine have left in their spools for it.
    """
    try:
        from tensormeter import server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tensormeter"):
            raise
        raise UsageError(f"serve needs the package {error.name!r}; pip install 'tensormeter[server]'") from None
    given: dict[str, Any] = {} if directory is None else {"directory": directory}
    address = store or os.environ.get("TENSORMETER_STORE")
    if address:
        given["clickhouse"] = parse_store(address)
    if print_schema:
        _print_schema(given.get("clickhouse"), limits["retention_days"])
        return
    if alerts_file is not None:
        given["alerts"] = server.load_alert_config(alerts_file)
    token = _read_token(token_file)
    server.configure_logs(log_format, access=access_log)
    config = server.ServerConfig(host=host, port=port, token=token, **given, **limits)
    server.serve(config, lambda url: _on_ready(url, config))


def _on_ready(url: str, config: "ServerConfig") -> None:
    click.echo(f"tensormeter: serving on {url} (data in {config.clickhouse or config.directory})")
    deliver_waiting_runs(url, config.token or config.own_token)


def parse_store(text: str) -> "Address":
    """The address of a ClickHouse database. Raises UsageError, SettingsError."""
    try:
        from tensormeter.server.store.clickhouse import parse_address
    except ModuleNotFoundError as error:
        raise UsageError(f"--store needs the package {error.name!r}; pip install 'tensormeter[clickhouse]'") from None
    return parse_address(text)


def _print_schema(address: "Address | None", retention_days: float | None) -> None:
    if address is None:
        raise UsageError("--print-schema: SQLite's tables make themselves; give --store clickhouse://HOST/DATABASE")
    from tensormeter.server.store.clickhouse.schema import statements

    for statement in statements(address.database, address.cluster, retention_days):
        click.echo(f"{statement};\n")


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("TENSORMETER_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--token-file {file}: cannot be read ({error})") from None
