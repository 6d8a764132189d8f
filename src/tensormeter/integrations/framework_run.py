"""The run that a framework's adapter records to.

It is the run that the script itself has started. Without one, the adapter starts a run.
"""

import inspect
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import tensormeter
from tensormeter import Run, Settings

__all__ = ["CallbackRun", "check_options", "join_or_start", "script_run", "start_run"]

_started: "Final[WeakKeyDictionary[Run, int]]" = WeakKeyDictionary()
"""Threads that have started runs for adapters, by run."""


def check_options(options: Mapping[str, Any]) -> None:
    """Check arguments for `tensormeter.init`, so that a mistake is reported before the training starts.

    Raises:
        TypeError: `tensormeter.init` has no such argument, or there is no such setting.
        SettingsError: An argument, a setting or a `TENSORMETER_*` variable is invalid.
    """
    inspect.signature(tensormeter.init).bind_partial(**options)
    settings = options.get("settings")
    fields = {name: options[name] for name in Settings.names() & options.keys() if options[name] is not None}
    if isinstance(settings, Settings):
        settings.replace(**fields)
    else:
        Settings(**{**(settings or {}), **fields})


def script_run() -> Run | None:
    """Return the current run, unless an adapter has started it: a second trainer must not continue the run of the first."""
    run = tensormeter.run
    return None if run in _started else run


def start_run(options: Mapping[str, Any], defaults: Mapping[str, Any], *, finish_previous: bool = False) -> Run:
    """Start a run for an adapter. If an adapter has already started the run with this ID, return that run.

    Args:
        options: Arguments of `tensormeter.init`. Arguments that are None are left out.
        defaults: Settings that apply if neither `options` nor the environment gives them.
        finish_previous: Whether to finish the current run if an adapter has started it in this thread. Without this, the
            folds of a cross-validation would keep their runs open.

    Raises:
        SettingsError: See `tensormeter.init`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {**defaults, **given.pop("defaults", {})}
    if "settings" not in given:
        run_id = given.get("id") or Settings.with_defaults(defaults).run_id
        for run in list(_started):
            if run.id == run_id and not run.finished:
                return run
    current = tensormeter.run
    if finish_previous and current is not None and _started.get(current) == threading.get_ident():
        current.finish()
    run = tensormeter.init(**given, defaults=defaults)
    _started[run] = threading.get_ident()
    return run


class CallbackRun(NamedTuple):
    """A run that a callback records in.

    Attributes:
        run: The run.
        owned: Whether the callback has started the run.
    """

    run: Run
    owned: bool

    def finish(self) -> None:
        """Finish the run if the callback has started it, and wait for delivery."""
        if self.owned:
            self.run.finish()


def join_or_start(run: Run | None, options: Mapping[str, Any], project: str) -> CallbackRun:
    """Return the run for a callback: the stated one, the script's, or one that is started now.

    A run that an earlier callback has started in this thread is finished first, because it describes another training.

    Args:
        run: Run that the script states, or None.
        options: Arguments for `tensormeter.init`. With any of them, a run is started even if the script has one.
        project: Project of a new run if neither the options nor the environment name one.

    Raises:
        SettingsError: An option is invalid.
    """
    chosen = run if run is not None or options else script_run()
    if chosen is not None:
        return CallbackRun(chosen, owned=False)
    return CallbackRun(start_run(options, {"project": project}, finish_previous=True), owned=True)
