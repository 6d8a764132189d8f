"""`tensormeter sync`: deliver what earlier runs have left on this machine."""

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from tensormeter.settings import Settings

__all__ = ["sync"]


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--endpoint", help="Where to deliver. Default: where each run wanted to go.")
def sync(directory: Path | None, endpoint: str | None) -> None:
    """Deliver what earlier runs have left in their spools and rings.

    DIRECTORY holds the runs; the default is TENSORMETER_DIR, or the user's state directory.
    The exit status is 1 if something is still not delivered.
    """
    from tensormeter.pipeline.sync import sync_runs

    settings = Settings() if endpoint is None else Settings(endpoint=endpoint)
    console = Console(highlight=False)
    delivered = undelivered = 0
    with console.status("") as status:
        results = sync_runs(
            directory or settings.directory,
            endpoint=endpoint,
            token=settings.token,
            on_status=lambda run, items: status.update(f"{escape(run.path.name)}: {items:,} items to go"),
        )
        for result in results:
            name = escape(f"{result.run.run.get('settings', {}).get('project', '?')}/{result.run.path.name}")
            if result.delivered:
                delivered += 1
                console.print(f"{name}: delivered")
            else:
                undelivered += 1
                console.print(f"{name}: not delivered, {escape(result.message or 'see its agent.log')}")
        if not delivered + undelivered:
            console.print("nothing to deliver")
    if undelivered:
        raise SystemExit(1)
