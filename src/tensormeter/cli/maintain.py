"""The commands `tensormeter compact` and `tensormeter backup`."""

from pathlib import Path

import click

from tensormeter.errors import StoreError, UsageError

__all__ = ["backup", "compact", "data_option", "need_server", "store_folder"]

data_option = click.option(
    "--data",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Server's data folder, which contains the store and the tokens.  "
    "[default: $TENSORMETER_SERVER_DIR, or the user's data folder]",
)


@click.command()
@data_option
def compact(directory: Path | None) -> None:
    """Compact a server's store to its minimum size. Stop the server first."""
    need_server()
    from tensormeter.server.store.sqlite.maintenance import compact as compact_store

    result = compact_store(store_folder(directory))
    click.echo(
        f"compacted {result.segments_before:,} segments to {result.segments_after:,} and {result.bytes_before:,} "
        f"bytes to {result.bytes_after:,}"
    )
    if result.damaged:
        raise StoreError(
            f"{result.damaged:,} series are damaged and were not compacted; list them with `tensormeter check`"
        )


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@data_option
def backup(target: Path, directory: Path | None) -> None:
    """Copy a server's store to the file TARGET, even while the server runs."""
    need_server()
    from tensormeter.server.store.sqlite.maintenance import back_up

    click.echo(f"wrote {back_up(store_folder(directory), target):,} bytes to {target}")


def store_folder(directory: Path | None) -> Path:
    """Return the given folder, or the server's default data folder if none is given."""
    from tensormeter.server import ServerConfig

    return ServerConfig().directory if directory is None else directory.expanduser().absolute()


def need_server() -> None:
    """Check that the server is installed; if not, raise a UsageError that names the missing package."""
    try:
        import tensormeter.server  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tensormeter"):
            raise
        raise UsageError(
            f"the package {error.name!r} is not installed; run pip install 'tensormeter[server]'"
        ) from None
