"""Run fields that filters and sort orders can name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tensormeter.errors import UsageError, join_choices

__all__ = ["Field", "find_field", "split_names", "unquote_name"]

_PART: Final = re.compile("((?:`(?:[^`]|``)*`|[^,])*),")

_PARTS: Final = ("value", "last", "min", "max", "mean", "count", "last_step", "last_time")
_TIMES: Final = ("started", "ended", "last_time")
_STORED: Final = {"last_time": "updated"} | {
    name: name
    for name in (
        *("id", "project", "name", "state", "attempt", "started", "ended"),
        *("group", "job_type", "tags", "notes", "archived", "processes", "points", "lost"),
    )
}

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Field:
    """A run field.

    Attributes:
        name: Name as written in the filter or sort order.
        stored: Names of the `Store.table` columns from which the field is computed.
        compute: Function from values of these columns to the field's values, with None for runs without a value; None
            to return the values of a single column.
        is_time: Whether the values are times in nanoseconds since the Unix epoch.
    """

    name: str
    stored: Sequence[str]
    compute: Callable[..., Sequence[Any]] | None = None
    is_time: bool = False

    def values(self, columns: Columns, rows: Sequence[int]) -> Sequence[Any]:
        """Return the field's values in these rows."""
        stored = [[*map(columns[name].__getitem__, rows)] for name in self.stored]
        return stored[0] if self.compute is None else self.compute(*stored)


def split_names(text: str) -> list[str]:
    """Split a comma-separated list of field names, which may be empty. Commas inside of backquotes do not separate names."""
    return [part.strip() for part in _PART.findall(text + ",")]


def unquote_name(text: str) -> str:
    """Return the name that backquotes enclose, in which two backquotes stand for one; other texts are names as they are."""
    if len(text) > 1 and text[0] == text[-1] == "`":
        return text[1:-1].replace("``", "`")
    return text


def find_field(name: str) -> Field:
    """Return the field with this name.

    Raises:
        UsageError: There is no such field.
    """
    if name == "duration":
        return Field(name, ("started", "ended", "updated"), _durations)
    if name == "lag":
        return Field(name, ("updated", "newest"), _lags)
    stored = _STORED.get(name)
    group, _, rest = name.partition(".")
    if stored is None and rest and group == "config":
        stored = name
    if stored is None and rest and group == "summary":
        metric, _, part = rest.rpartition(".")
        stored = name if metric and part in _PARTS else f"{name}.value"
        return Field(name, (stored,), _without_nan)
    if stored is None:
        names = sorted({*_STORED, "duration", "lag"})
        raise UsageError(f"there is no field {name[:80]!r}; expected {join_choices(*names, 'config.*', 'summary.*')}")
    return Field(name, (stored,), is_time=name in _TIMES)


def _durations(started: Sequence[int], ended: Sequence[int | None], updated: Sequence[int]) -> Sequence[float]:
    triples = zip(started, ended, updated, strict=True)
    return [((updated if ended is None else ended) - started) / 1e9 for started, ended, updated in triples]


def _lags(updated: Sequence[int], newest: Sequence[int]) -> Sequence[float | None]:
    pairs = zip(updated, newest, strict=True)
    # Calling `max` for each run would take twice as long.
    return [((updated - newest) / 1e9 if updated > newest else 0.0) if newest else None for updated, newest in pairs]


def _without_nan(values: Sequence[Any]) -> Sequence[Any]:
    """Replace NaN, which cannot be sorted, with None."""
    return [None if value != value else value for value in values]  # noqa: PLR0124
