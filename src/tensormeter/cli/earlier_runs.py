"""Delivery of earlier runs' data when `tensormeter serve` starts."""

import threading

import click

from tensormeter.cli.terminal import plain
from tensormeter.settings import Settings

__all__ = ["deliver_waiting_runs"]


def deliver_waiting_runs(url: str, token: str | None) -> None:
    """Start delivering earlier runs whose endpoint is `url` to the server that has just started there.

    The call returns immediately; a daemon thread does the work. If data is still undelivered when the server stops, it
    remains in the spools.
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
            continue  # there is nothing left to deliver, and an earlier delivery has reported any losses
        outcome = "; ".join([result.outcome, *result.cut])
        click.echo(f"tensormeter: an earlier run, {plain(result.run.path.name)}: {plain(outcome)}")
