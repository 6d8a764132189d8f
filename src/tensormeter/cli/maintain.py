"""`tensormeter compact` and `tensormeter backup`."""

from pathlib import Path

import click

from tensormeter.errors import StoreError, UsageError

__all__ = ["backup", "compact", "data_option", "need_server", "store_folder"]

data_option = click.option(
    "--data",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the store.  [default: $TENSORMETER_SERVER_DIR, or the user's data folder]",
)


@click.command()
@data_option
def compact(directory: Path | None) -> None:
    """Make a server's store as small as it can be. The server must be stopped."""
    need_server()
    from tensormeter.server.store.sqlite.maintenance import compact as compact_store

    done = compact_store(store_folder(directory))
    click.echo(
        f"{done.segments_before:,} segments are {done.segments_after:,} now, "
        f"{done.bytes_before:,} bytes are {done.bytes_after:,}"
    )
    if done.damaged:
        raise StoreError(
            f"{done.damaged:,} series are damaged and were left as they are; `tensormeter check` lists them"
        )


@click.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@data_option
def backup(target: Path, directory: Path | None) -> None:
    """Copy a server's store to the file TARGET, also while the server runs."""
    need_server()
    from tensormeter.server.store.sqlite.maintenance import back_up

    click.echo(f"{back_up(store_folder(directory), target):,} bytes in {target}")


def store_folder(directory: Path | None) -> Path:
    """The folder that was named, or the usual one."""
    from tensormeter.server import ServerConfig

    return ServerConfig().directory if directory is None else directory.expanduser().absolute()


def need_server() -> None:
    """Raises a UsageError that says what to install, if this installation has no server."""
    try:
        import tensormeter.server  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tensormeter"):
            raise
        raise UsageError(f"this needs the package {error.name!r}; pip install 'tensormeter[server]'") from None
