"""Records what summary writers of torch and tensorboardX write, next to their event files.

``stop = tensormeter.tensorboard.sync.start()`` records scalars, images, histograms, texts, audio clips, PR curves and hyperparameters
in the current run, with their steps, from then on and from all threads. The event files are still written. ``stop()`` or the end
of the run ends this.
"""

import importlib
import importlib.util
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from tensormeter.logger import get_logger
from tensormeter.record.warn_once import WarnOnce, describe
from tensormeter.session import open_runs
from tensormeter.session.run import Run, before_finish
from tensormeter.tensorboard.events import record_event
from tensormeter.tensorboard.folders import namespaces_of

__all__ = ["start"]

logger: Final = get_logger()

_notices: Final = WarnOnce()

_MODULES: Final = ("tensorboard.summary.writer.event_file_writer", "tensorboardX.event_file_writer")
"""Modules with a class `EventFileWriter`, which receives each event before it is written to a file."""

_receivers: Final[list[Run]] = []
"""Runs that receive the events. A run may be listed several times."""

_patched: Final[list[tuple[Any, str, Any, Any]]] = []
"""Methods that have been replaced: class, name, the original function and the new one."""

_lock: Final = threading.Lock()


def start(run: Run | None = None) -> Callable[[], None]:
    """Record in a run what summary writers of this process write from now on, also in other threads.

    Tags become the names of metrics. If writers use several folders, the folder's path below their common folder becomes a prefix,
    as in W&B. Writers of `tensormeter.tensorboard` record their values themselves.

    The call imports the packages `tensorboard` and `tensorboardX`, if they are installed. Recording never raises. TensorFlow's
    own writers are not supported.

    Args:
        run: Run that receives the values. Default: the current run.

    Returns:
        Function that ends the recording. The end of the run does this, too. Further calls of it do nothing.
    """
    receiver = run if run is not None else open_runs.current_run()
    if receiver is None:
        logger.warning(
            "tensorboard.sync: there is no unfinished run, so nothing is recorded; call tensormeter.init() first"
        )
        return lambda: None
    with _lock:
        _receivers.append(receiver)
        if not _patched:
            for name in _MODULES:
                _patch(name)
        if not _patched:
            _notices.once(
                "packages",
                "tensorboard.sync: neither tensorboard nor tensorboardX is installed, so nothing is recorded",
            )
    is_active = [True]

    def stop() -> None:
        with _lock:
            if is_active and receiver in _receivers:
                _receivers.remove(receiver)
                is_active.clear()
                _restore_without_receivers()

    return stop


def _before_finish(run: Run, state: str) -> None:
    if run in _receivers:
        with _lock:
            _receivers[:] = [receiver for receiver in _receivers if receiver is not run]
            _restore_without_receivers()


def _patch(name: str) -> None:
    """Replace the method that receives events. Does nothing if the package is not installed, or cannot be imported."""
    try:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            return
        writer = importlib.import_module(name).EventFileWriter
        start_writer, add_event = writer.__init__, writer.add_event
    except Exception as error:  # a broken installation may raise anything
        _notices.once(
            name, "tensorboard.sync: cannot import %s, so its writers are not recorded: %s", name, describe(error)
        )
        return

    @wraps(start_writer)
    def start_and_note(self: Any, *arguments: Any, **named: Any) -> None:
        start_writer(self, *arguments, **named)
        for receiver in tuple(_receivers):
            _note(receiver, self)

    @wraps(add_event)
    def record_and_add_event(self: Any, event: Any, *arguments: Any, **named: Any) -> Any:
        for receiver in tuple(dict.fromkeys(_receivers)):
            _record(receiver, self, event)
        return add_event(self, event, *arguments, **named)

    for method, original, replacement in (
        ("__init__", start_writer, start_and_note),
        ("add_event", add_event, record_and_add_event),
    ):
        setattr(writer, method, replacement)
        _patched.append((writer, method, original, replacement))


def _note(run: Run, writer: Any) -> None:
    """Note the folder of a new writer, before prefixes of tags depend on it."""
    try:
        namespaces_of(run).add(str(writer.get_logdir()))
    except Exception as error:  # a writer of another version; the training goes on
        _notices.once(type(error), "tensorboard.sync: the folder of a writer is not known: %s", describe(error))


def _record(run: Run, writer: Any, event: Any) -> None:
    if run.finished:
        return
    try:
        has_values = event.WhichOneof("what") == "summary"  # writers begin with another event, before others are made
        prefix = namespaces_of(run).prefix(str(writer.get_logdir())) if has_values else ""
        record_event(run, event, prefix)
    except Exception as error:  # an event of another version may have any contents; the training goes on
        _notices.once(type(error), "tensorboard.sync: an event is not recorded: %s", describe(error))


def _restore_without_receivers() -> None:
    """Restore the original methods. If other software has replaced them since, the replacements stay and record nothing."""
    if _receivers:
        return
    for writer, method, original, replacement in _patched:
        if getattr(writer, method) is replacement:
            setattr(writer, method, original)
    _patched.clear()


before_finish.append(_before_finish)
