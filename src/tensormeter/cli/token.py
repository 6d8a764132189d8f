"""`tensormeter token`: who may talk to a server, and what they may do."""

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
    """Make, list and revoke the tokens of a server, also while it runs.

    A server whose folder has tokens answers nobody without one. All take effect at once.
    """


@token.command()
@click.argument("name")
@click.option(
    "--allow",
    "permissions",
    multiple=True,
    required=True,
    type=click.Choice(("write", "read", "admin")),
    help="write: send metrics and logs. read: see runs. Both: also change names, tags and notes. admin: all, also delete. "
    "May be repeated.",
)
@click.option("--project", help="The only project there is for its holder.  [default: all]")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Until it expires.  [default: never]")
@data_option
def create(
    name: str, *, permissions: tuple[str, ...], project: str | None, days: float | None, directory: Path | None
) -> None:
    """Make a token for NAME, a person or a machine, and print it.

    It is shown this once: the server keeps a hash.
    """
    made, text = _file(directory).create(name, permissions, project=project, days=days)  # type: ignore[arg-type]
    where = "all projects" if made.project is None else f"project {plain(made.project)}"
    click.echo(f"token {made.id} for {plain(name)}: may {' and '.join(made.permissions)} in {where}", err=True)
    click.echo(text)


@token.command("ls")
@data_option
def list_tokens(directory: Path | None) -> None:
    """List the tokens, without their secrets."""
    tokens = _file(directory).tokens()
    if not tokens:
        nobody = (
            "no tokens: only this machine is answered, and needs none"
            if tokens is None
            else "no tokens: nobody is let in"
        )
        click.echo(nobody)
        return
    table = Table("id", "name", "may", "project", "created", "expires", box=None, header_style="bold", pad_edge=False)
    for one in tokens.values():
        expires = "never" if one.expires is None else _day(one.expires)
        table.add_row(
            one.id,
            Text(plain(one.name)),
            " ".join(one.permissions),
            Text("all" if one.project is None else plain(one.project)),
            _day(one.created),
            "expired" if one.expired(time.time()) else expires,
        )
    Console().print(table)


@token.command()
@click.argument("name_or_id")
@data_option
def revoke(name_or_id: str, directory: Path | None) -> None:
    """Take a token back: a server that runs refuses it from now on."""
    revoked = _file(directory).revoke(name_or_id)
    click.echo(f"revoked {revoked.id} of {plain(revoked.name)}")


def _file(directory: Path | None) -> "TokenFile":
    need_server()
    from tensormeter.server.auth.tokens import TokenFile

    return TokenFile(store_folder(directory))


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
