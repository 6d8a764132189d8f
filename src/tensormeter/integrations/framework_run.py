"""The run that a framework's adapter records to.

It is the run that the script itself has started. Without one, the adapter starts a run.
"""

import inspect
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import tensormeter
from tensormeter import Run, Settings

__all__ = [
    "CallbackRun",
    "check_options",
    "continue_run",
    "end_training",
    "join_or_start",
    "script_run",
    "start_run",
]


class _Start(NamedTuple):
    """The start of a run: the thread, and the arguments of `start_run`."""

    thread: int
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]


_started: "Final[WeakKeyDictionary[Run, _Start]]" = WeakKeyDictionary()
"""Runs that adapters have started."""

_ended: "Final[WeakKeyDictionary[Run, str]]" = WeakKeyDictionary()
"""Final states of runs whose training has ended. They are open, because an evaluation may follow."""

_replaced: "Final[WeakSet[Run]]" = WeakSet()
"""Runs that were finished because another training has started."""


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


def start_run(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Run:
    """Start a run for an adapter. If an adapter has already started the run with this ID, return that run.

    Runs that adapters have started in this thread are finished first if their training has ended. Otherwise, the folds of a
    cross-validation would keep their runs open, and an exception in the last fold would make all of them failed runs.

    Args:
        options: Arguments of `tensormeter.init`. Arguments that are None are left out.
        defaults: Settings that apply if neither `options` nor the environment gives them.

    Raises:
        SettingsError: See `tensormeter.init`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    start = _Start(threading.get_ident(), dict(given), defaults)
    defaults = {**defaults, **given.pop("defaults", {})}
    if "settings" not in given:
        run_id = given.get("id") or Settings.with_defaults(defaults).run_id
        for run in list(_started):
            if run.id == run_id and not run.finished:
                return run
    for run, state in list(_ended.items()):
        if _started[run].thread == start.thread:
            del _ended[run]
            if not run.finished:
                _replaced.add(run)
                run.finish(state)
    run = tensormeter.init(**given, defaults=defaults)
    _started[run] = start
    return run


def end_training(run: Run, state: str = "finished") -> None:
    """Let the start of the next training finish a run. This does nothing to a run that the script has started."""
    if run in _started:
        _ended[run] = state


def continue_run(run: Run) -> Run:
    """Return the run for another training or evaluation: the same, or a new attempt if `start_run` has finished it."""
    _ended.pop(run, None)
    if run not in _replaced:
        return run
    start = _started[run]
    return start_run({**start.options, "id": run.id, "project": run.project}, start.defaults)


class CallbackRun(NamedTuple):
    """A run that a callback records in.

    Attributes:
        run: The run.
        owned: Whether the callback has started the run.
    """

    run: Run
    owned: bool

    def current(self) -> "CallbackRun | None":
        """Return this run for another training, a new attempt if another training has finished it, or None if it has ended."""
        if not self.owned:
            return None if self.run.finished else self
        run = continue_run(self.run)
        end_training(run)
        return None if run.finished else CallbackRun(run, owned=True)

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
    chosen = start_run(options, {"project": project})
    end_training(chosen)  # callbacks do not learn of an exception in the training
    return CallbackRun(chosen, owned=True)
