"""Choice of the columns of a table that contain the step, the time and the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tensormeter.importers.registry import Options, SourceError

__all__ = ["LONG_COLUMNS", "Layout", "choose_layout", "is_long"]

LONG_COLUMNS: Final = ("project", "run", "process", "rank", "attempt", "metric", "attributes", "step", "time", "value")
"""Columns of the tables that `tensormeter export` writes. They have a row for each point."""

_STEPS: Final = ("step", "_step", "global_step", "iteration", "iter", "epoch")
_TIMES: Final = ("time", "_timestamp", "timestamp", "wall_time", "datetime", "date", "_runtime", "runtime", "elapsed")
_RUNS: Final = ("run", "run_id", "run_name")


@dataclass(frozen=True)
class Layout:
    """Columns of a wide table, which has a column for each metric. A name is "" if there is no such column."""

    step: str
    time: str
    run: str


def is_long(names: Sequence[str]) -> bool:
    """Return whether these are the columns of a table that `tensormeter export` writes."""
    return set(LONG_COLUMNS) <= set(names)


def choose_layout(label: str, names: Sequence[str], options: Options, note: Callable[[str], None]) -> Layout:
    """Return the chosen columns of a wide table, and show which were guessed.

    Raises:
        SourceError: The table lacks a column that the options name.
    """
    given = (options.step_column, options.time_column, options.run_column)
    for column in given:
        if column and column not in names:
            raise SourceError(f"{label}: has no column {column!r}; its columns are {', '.join(names[:20])}")
    by_lower = {name.lower(): name for name in reversed(names)}
    chosen: list[str] = []
    for column, guesses in zip(given, (_STEPS, _TIMES, _RUNS), strict=True):
        taken = {*given, *chosen}
        guess = next((by_lower[name] for name in guesses if name in by_lower and by_lower[name] not in taken), "")
        chosen.append(column or guess)
    layout = Layout(*chosen)
    step = f"column {layout.step!r}" if layout.step else "number of the row, because no column looks like a step"
    time = f"column {layout.time!r}" if layout.time else "the file's time, plus 1 ms for each row"
    run = f"; run: column {layout.run!r}" if layout.run else ""
    note(f"{label}: step: {step}; time: {time}{run}")
    return layout
