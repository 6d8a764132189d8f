"""Log calls with W&B's rules for steps."""

import threading
from collections.abc import Mapping
from typing import Any

from tensormeter.conventions.limits import METRIC_NAMES
from tensormeter.record.dynamo import break_graph
from tensormeter.record.values.classify import classify_step
from tensormeter.ring.format import AUTOMATIC_STEPS
from tensormeter.session.run import Run as RecordedRun
from tensormeter.wandb.flat_rows import NOTHING, NUMBERS, flatten, readable
from tensormeter.wandb.notices import warn_once

__all__ = ["SteppedLog"]


class SteppedLog:
    """The current step of a run, and the values that wait for a commit.

    `log` without a step writes to the current step and then goes on to the next one. `log` with a step makes it the current one,
    and keeps it open for further values. Unlike in W&B, each call records its row at once, except for rows with `commit=False`.
    Rows whose step is lower than the current one are recorded, too.

    Thread-safe like `tensormeter.Run`. Two threads that log without a step at the same moment may share one.
    """

    def __init__(self, recorded: RecordedRun, first_step: int | None) -> None:
        """
        Args:
            recorded: Run that records the data.
            first_step: First step. Default: 0, or the step after the last one of earlier attempts.
        """
        self._recorded = recorded
        self._latest: dict[str, Any] = {}
        self._step = recorded._next_step if first_step is None else first_step
        self._pending: dict[str, Any] = {}
        self._lock = threading.RLock()

    def log(
        self, data: Mapping[str, Any] = NOTHING, step: Any = None, commit: bool | None = None, sync: Any = None
    ) -> None:
        """Record values. Returns immediately, and does not raise because of a value (see `tensormeter.Run.log`).

        Args:
            data: Values by name. Values of nested mappings have names with dots, such as `train.loss`.
            step: Step of the values. Default: the current step.
            commit: Whether to go on to the next step afterwards. Default: True without a step, and False with one. With False,
                numbers and texts wait for the next call, the next step or the end of the run, and are recorded in one row with its
                values; the last value of each name counts.
            sync: Ignored.
        """
        if commit is None and not self._pending and type(data) is dict and (step is None or type(step) is int):
            try:
                for value in data.values():
                    if type(value) not in NUMBERS:
                        break
                else:
                    now = self._step
                    if step is None:
                        step = now
                        self._step = now + 1
                    elif step > now:
                        self._step = step
                    elif step < now:
                        self._note_earlier(step)
                    self._recorded.log(data, step)
                    if len(self._latest) < METRIC_NAMES:
                        self._latest.update(data)
                    return
            except RuntimeError:  # another thread changes the dictionary, which `_log` copies
                pass
        self._log(data, step, commit)

    def _log(self, data: Mapping[str, Any], step: Any, commit: bool | None) -> None:
        """Record values of any type, or values that wait."""
        values = flatten(data)
        if values is None:  # not a mapping that can be read, which the recorder warns about
            self._recorded.log(data)
            return
        with self._lock:
            at = self._open_step(step)
            waiting = readable(values)
            self._remember(waiting)
            if commit is False:
                values = {key: value for key, value in values.items() if key not in waiting}
                self._pending.update(waiting)
            elif self._pending and at == self._step:
                values, self._pending = {**self._pending, **values}, {}
            if commit or (commit is None and step is None):
                self._step = at + 1 if at == self._step else self._step
        if values:
            self._recorded.log(values, at)

    def _remember(self, values: Mapping[str, Any]) -> None:
        """Keep the values for the summary that scripts read."""
        if len(self._latest) < METRIC_NAMES:
            self._latest.update(values)

    def _open_step(self, step: Any) -> Any:
        """Return the step of a row, which becomes the current one unless it is lower. A higher one writes the pending row."""
        if step is None:
            return self._step
        try:
            at = classify_step(step)
        except Exception:  # the recorder warns about it, and uses the next step
            return step
        if at > self._step or self._step >= AUTOMATIC_STEPS:
            self._flush()
            self._step = at
        elif at < self._step:
            self._note_earlier(at)
        return at

    def _note_earlier(self, step: int) -> None:
        """Handle a step that is lower than the current one, which may also be unknown because the run is resumed."""
        if self._step >= AUTOMATIC_STEPS:
            self._flush()
            self._step = step
        else:
            warn_once(
                "earlier step",
                "wandb.log: step %d is lower than the current step %d; it is recorded at step %d, although W&B would drop it",
                *(step, self._step, step),
            )

    def after_fork(self) -> None:
        """Prepare for use in a forked child. The values that wait are the parent's, whose threads may hold the lock."""
        self._lock = threading.RLock()
        self._pending = {}

    def _flush(self) -> None:
        """Record the values that wait for a commit."""
        with self._lock:
            values, self._pending = self._pending, {}
        if values:
            self._recorded.log(values, self._step)


break_graph(SteppedLog.log)
