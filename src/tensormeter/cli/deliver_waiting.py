"""What `tensormeter serve` does beside serving: it takes in what earlier runs on this machine have left for it."""

import threading

import click

from tensormeter.cli.terminal import plain
from tensormeter.settings import Settings

__all__ = ["deliver_waiting_runs"]


def deliver_waiting_runs(url: str, token: str | None) -> None:
    """Start delivering, to the server that has just come up at `url`, the runs that want to go there. Returns at once.

    The work is done on a daemon thread; whatever it has not done when the server stops stays in the spools.
    """
    threading.Thread(target=_deliver, args=(url, token), name="tensormeter-sync", daemon=True).start()


def _deliver(url: str, token: str | None) -> None:
    from tensormeter.agent.sync import SkippedRun, belongs_to, sync_runs

    results = sync_runs(
        Settings().directory, endpoint=url, token=token, foreign=False, choose=lambda run: belongs_to(run, url)
    )
    for result in results:
        if isinstance(result, SkippedRun):
            click.echo(f"tensormeter: skipped {plain(result.path)}: {plain(result.reason)}")
            continue
        if result.is_complete and result.leftover.keeps_folder and not result.cut:
            continue  # nothing waits, and what is kept was reported before
        outcome = "; ".join([result.outcome, *result.cut])
        click.echo(f"tensormeter: an earlier run, {plain(result.run.path.name)}: {plain(outcome)}")
