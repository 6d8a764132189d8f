"""Search for runs with a filter, a sort order and pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_
from types import NoneType
from typing import Any

from tensormeter.errors import UsageError
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.runs.fields import Field, find_field, split_names, unquote_name
from tensormeter.server.query.runs.filter import Rows, parse_filter
from tensormeter.server.store import RunTable

__all__ = ["Load", "RunSearch", "find_runs"]


@dataclass(frozen=True)
class _Order:
    field: Field
    descending: bool


@dataclass(frozen=True)
class RunSearch:
    """A search for runs.

    Attributes:
        limit: Maximum number of runs on the page.
        offset: Number of matching runs to skip before the page.
        filter: Condition in the filter language. Archived runs match only if the condition uses the field `archived`.
        sort: Comma-separated field names, with a leading `-` for descending order; "" to put the run that started last
            first.
    """

    limit: int
    offset: int = 0
    filter: str = ""
    sort: str = ""


Load = Callable[[Sequence[str]], RunTable]
"""Function that returns a table with the given fields of all runs that are searched; see `Store.table`."""


def find_runs(load: Load, search: RunSearch, check: Check = no_check) -> tuple[list[int], int]:
    """Return the numbers of a page of the matching runs, and the total number of matching runs.

    Args:
        load: Function that loads the runs.
        search: Filter, sort order and page.
        check: Function called repeatedly; it can raise an exception to stop the search.

    Raises:
        UsageError: The filter or the sort order cannot be parsed.
    """
    condition = parse_filter(search.filter, check)
    orders = _parse_sort(search.sort or "-started")
    shows_archived = any(field.name == "archived" for field in condition.fields.values())
    fields = [*condition.fields.values(), *(order.field for order in orders), find_field("archived")]
    table = load([*dict.fromkeys(name for field in fields for name in field.stored)])
    rows: Rows = range(len(table.runs))
    if not shows_archived:
        rows = [*compress(rows, map(not_, table.columns["archived"]))]
    rows = [*condition.select(table.columns, rows)]
    # Sorting is stable, so sort by the least significant field first. Among equal runs, put the newest first.
    rows.sort(key=table.runs.__getitem__, reverse=True)
    for order in reversed(orders):
        check()
        rows = _sorted(rows, order.field.values(table.columns, rows), descending=order.descending)
    page = rows[search.offset : search.offset + search.limit]
    return [table.runs[row] for row in page], len(rows)


def _parse_sort(text: str) -> Sequence[_Order]:
    orders = []
    for name in split_names(text):
        if not name.lstrip("-+"):
            raise UsageError(f"sort: expected comma-separated field names, got {text[:80]!r}")
        try:
            field = find_field(unquote_name(name.removeprefix("-").removeprefix("+")))
        except UsageError as error:
            raise UsageError(f"sort: {error}") from None
        orders.append(_Order(field, name.startswith("-")))
    if len(orders) > 8:
        raise UsageError(f"sort: expected at most 8 fields, got {len(orders)}")
    return orders


def _sorted(rows: Sequence[int], values: Sequence[Any], *, descending: bool) -> list[int]:
    """Return the rows in the order of their values. Rows without a value are last."""
    types = {*map(type, values)}
    # Values are their own keys if all of them have comparable types.
    plain = types <= {int, float, bool, NoneType} or types <= {str, NoneType}
    keys = values if plain else [*map(_sortable, values)]
    positions: Sequence[int] = range(len(rows))
    missing: Sequence[int] = ()
    if NoneType in types:
        missing = [position for position in positions if values[position] is None]
        positions = [position for position in positions if values[position] is not None]
    order = [*sorted(positions, key=keys.__getitem__, reverse=descending), *missing]
    return [*map(rows.__getitem__, order)]


def _sortable(value: Any) -> tuple[int, Any]:
    """Return a sort key that puts numbers before strings, and strings before everything else."""
    if isinstance(value, int | float):
        return 0, value
    if isinstance(value, str):
        return 1, value
    return 2, str(value)
