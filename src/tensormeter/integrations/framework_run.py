"""The run that a framework's adapter records to.

It is the run that the script itself has started. Without one, the adapter starts a run, which ends with the process.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakSet

import tensormeter
from tensormeter import Run, Settings

__all__ = ["check_options", "script_run", "start_run"]

_started: Final[WeakSet[Run]] = WeakSet()
"""Runs that adapters have started."""


def check_options(options: Mapping[str, Any]) -> None:
    """Check the names of the arguments for `tensormeter.init`, so that a mistake is reported before the training starts.

    Raises:
        TypeError: `tensormeter.init` has no such argument.
    """
    inspect.signature(tensormeter.init).bind_partial(**options)


def script_run() -> Run | None:
    """Return the current run, unless an adapter has started it: a second trainer must not continue the run of the first."""
    run = tensormeter.run
    return None if run in _started else run


def start_run(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Run:
    """Start a run for an adapter. If an adapter has already started the run with this ID, return that run.

    Args:
        options: Arguments of `tensormeter.init`. Arguments that are None are left out.
        defaults: Settings that apply if neither `options` nor the environment gives them.

    Raises:
        SettingsError: See `tensormeter.init`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "settings" not in given:
        run_id = given.get("id") or Settings.with_defaults(defaults).run_id
        for run in _started:
            if run.id == run_id and not run.finished:
                return run
    run = tensormeter.init(**given, defaults=defaults)
    _started.add(run)
    return run
