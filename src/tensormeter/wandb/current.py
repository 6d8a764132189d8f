"""The run that `wandb.run` refers to, and the other runs of this package.

As in W&B, one run is current in all threads: the latest one that `init` has started, except for runs with
`reinit="create_new"`. If there is none, but the script has started a run with `tensormeter.init`, that run is current.
"""

import os
from typing import TYPE_CHECKING, Final

from tensormeter.session import open_runs
from tensormeter.session.run import Run as RecordedRun
from tensormeter.session.run import before_finish
from tensormeter.wandb.sdk.wandb_config import Config

if TYPE_CHECKING:
    from tensormeter.wandb.sdk.wandb_run import Run

__all__ = ["active_runs", "clear_config", "current_run", "known_run", "register", "set_current"]

run: "Run | None" = None
"""The current run that `init` has started, until it finishes. Use `current_run`, which also looks for other runs."""

before_init: Config = Config()
"""Configuration that was set before `init`; the next run starts with it."""

_OWN_RUN: Final = "_wandb_run"
"""Attribute of a run that records data, for the run of this package."""


def current_run() -> "Run | None":
    """Return the current run, or None if there is no unfinished one."""
    if run is not None:
        return run
    recorded = open_runs.current_run()
    if recorded is None:
        return None
    adopted = known_run(recorded)
    if adopted is None:
        from tensormeter.wandb.sdk.wandb_run import AdoptedRun

        adopted = AdoptedRun(recorded, recorded.config)
        register(adopted, recorded)
    return adopted if adopted.is_adopted else None


def register(started: "Run", recorded: RecordedRun) -> None:
    """Add a run of this package."""
    setattr(recorded, _OWN_RUN, started)


def known_run(recorded: RecordedRun) -> "Run | None":
    """Return the run of this package for a run that records data, if there is one."""
    run: Run | None = vars(recorded).get(_OWN_RUN)
    return run


def set_current(started: "Run | None") -> None:
    """Make a run the current one, or none."""
    global run
    run = started


def active_runs() -> "list[Run]":
    """Return the unfinished runs that `init` has started in this process, oldest first."""
    runs = [known_run(recorded) for recorded in open_runs.all_open()]
    return [each for each in runs if each is not None and each.pid == os.getpid() and not each.is_adopted]


def clear_config() -> None:
    """Forget the configuration that was set before `init`."""
    global before_init
    before_init = Config()


def _prepare_to_finish(recorded: RecordedRun, state: str) -> None:
    finishing = known_run(recorded)
    if finishing is not None:
        finishing.before_finish(state)
        if run is finishing:
            set_current(None)


def _after_fork() -> None:
    for recorded in open_runs.all_open():
        inherited = known_run(recorded)
        if inherited is not None:
            inherited.after_fork()


before_finish.append(_prepare_to_finish)
os.register_at_fork(after_in_child=_after_fork)
