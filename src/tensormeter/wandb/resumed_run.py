"""The step and the configuration with which a resumed run goes on, as known to the server."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tensormeter.errors import TensormeterError
from tensormeter.record.warn_once import describe
from tensormeter.session.run import Run
from tensormeter.wandb.notices import warn_once

if TYPE_CHECKING:
    from tensormeter.client.run import StoredRun

__all__ = ["earlier_config", "first_step"]

_TIMEOUT: Final = 10.0
"""Maximum time in seconds to wait for the next byte of a response."""

_FEWEST_POINTS: Final = 4
"""Number of points per series to request. Sampling keeps the last point."""

_MOST_METRICS: Final = 500

_Answer = TypeVar("_Answer")


def first_step(run: Run) -> int:
    """Return the step after the last one of earlier attempts, as far as the server has received them. Blocks for some seconds.

    Returns:
        0 if the server does not respond, with a warning, or if it does not have the run.
    """
    consequence = "wandb.run.step: counting from 0, because the last step of the run"
    return _ask(run, lambda stored: 1 + _last_step(stored, run), consequence) or 0


def earlier_config(run: Run) -> dict[str, Any]:
    """Return the configuration of earlier attempts, as far as the server has received it. Blocks for some seconds.

    Returns:
        An empty mapping if the run is not online, if the server does not respond, with a warning, or if it does not have the run.
    """
    if run.settings.mode != "online":
        return {}
    consequence = "wandb.config: starting empty, because the earlier configuration of the run"
    return _ask(run, lambda stored: dict(stored.refresh().config), consequence) or {}


def _ask(run: Run, read: Callable[["StoredRun"], _Answer], consequence: str) -> _Answer | None:
    """Return what is read from the stored run; None with a warning if that fails, or if the server does not have the run."""
    from tensormeter.client import Client

    try:
        with Client(run.settings.endpoint, token=run.settings.token, timeout=_TIMEOUT) as client:
            for stored in client.runs(run.project, filter=f'id = "{run.id}"', limit=1):
                return read(stored)
    except Exception as error:  # a program that is no experiment server may answer with any document
        reason = error if isinstance(error, TensormeterError) else describe(error)
        warn_once(consequence, "%s cannot be read: %s", consequence, reason)
    return None


def _last_step(stored: "StoredRun", run: Run) -> int:
    """Return the last step of earlier attempts, or -1."""
    own = run._process.id if run._process is not None else ""
    attempts = [process.attempt for process in stored.processes() if process.id == own]
    names = [name for name, summary in stored.summary.items() if summary.last_step is not None][:_MOST_METRICS]
    if not attempts:  # none of this attempt's data has arrived
        return max((stored.summary[name].last_step or 0 for name in names), default=-1)
    series = stored.series(*names, attempt="all", max_points=_FEWEST_POINTS) if names else ()
    return max((int(each.x[-1]) for each in series if each.attempt < attempts[0] and len(each)), default=-1)
