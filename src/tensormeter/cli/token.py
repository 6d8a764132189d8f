"""The command `tensormeter token`, which manages a server's access tokens."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.maintain import data_option, need_server, store_folder
from tensormeter.cli.terminal import plain

if TYPE_CHECKING:
    from tensormeter.server.auth.tokens import TokenFile

__all__ = ["token"]


@click.group()
def token() -> None:
    """Create, list and revoke access tokens of a server, even while it runs.

    Once a server has tokens, every client needs one. Changes take effect at once.
    """


@token.command()
@click.argument("name")
@click.option(
    "--allow",
    "permissions",
    multiple=True,
    required=True,
    type=click.Choice(("write", "read", "admin")),
    help="Permission of the token: write (send metrics and logs), read (read runs) or admin (everything, including deleting runs). Repeat the option to give several. With read and write, a client can also archive runs and edit their names, tags, notes and groups.",
)
@click.option("--project", help="Restrict the token to this project.  [default: all projects]")
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), help="Days until the token expires.  [default: never]"
)
@data_option
def create(
    name: str, *, permissions: tuple[str, ...], project: str | None, days: float | None, directory: Path | None
) -> None:
    """Create a token for NAME, a person or a machine, and print it.

    The token is shown only once, because the server stores only its hash.
    """
    record, text = _file(directory).create(name, permissions, project=project, days=days)  # type: ignore[arg-type]
    where = "all projects" if record.project is None else f"project {plain(record.project)}"
    click.echo(f"token {record.id} for {plain(name)}: may {' and '.join(record.permissions)} in {where}", err=True)
    click.echo(text)


@token.command("ls")
@data_option
def list_tokens(directory: Path | None) -> None:
    """List the tokens, without their secrets."""
    tokens = _file(directory).tokens()
    if not tokens:
        message = (
            "no tokens; only this machine can use the server, without a token"
            if tokens is None
            else "no tokens; the server refuses all clients until you create one"
        )
        click.echo(message)
        return
    table = Table(
        "id", "name", "permissions", "project", "created", "expires", box=None, header_style="bold", pad_edge=False
    )
    for record in tokens.values():
        expires = "never" if record.expires is None else _minute(record.expires)
        table.add_row(
            record.id,
            Text(plain(record.name)),
            " ".join(record.permissions),
            Text("all" if record.project is None else plain(record.project)),
            _minute(record.created),
            "expired" if record.expired(time.time()) else expires,
        )
    Console().print(table)


@token.command()
@click.argument("name_or_id")
@data_option
def revoke(name_or_id: str, directory: Path | None) -> None:
    """Revoke a token by its name or ID. A running server refuses it from now on."""
    record = _file(directory).revoke(name_or_id)
    click.echo(f"revoked token {record.id} of {plain(record.name)}")


def _file(directory: Path | None) -> "TokenFile":
    need_server()
    from tensormeter.server.auth.tokens import TokenFile

    return TokenFile(store_folder(directory))


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
