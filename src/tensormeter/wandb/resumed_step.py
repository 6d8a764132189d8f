"""The step at which a resumed run goes on, as known to the server."""

from typing import Final

from tensormeter.errors import TensormeterError
from tensormeter.session.run import Run
from tensormeter.wandb.notices import warn_once

__all__ = ["first_step"]

_TIMEOUT: Final = 10.0


def first_step(run: Run) -> int:
    """Return the step after the last one that the server has of a run. Blocks for up to some seconds.

    Returns:
        0 if the server does not respond or does not have the run.
    """
    from tensormeter.client import Client

    try:
        with Client(run.settings.endpoint, token=run.settings.token, timeout=_TIMEOUT) as client:
            stored = client.run(run.id, project=run.project)
            steps = [summary.last_step for summary in stored.summary.values() if summary.last_step is not None]
            return 1 + max(steps, default=-1)
    except TensormeterError as error:
        warn_once("step", "wandb.run.step: counting from 0, because the last step of the run cannot be read: %s", error)
        return 0
