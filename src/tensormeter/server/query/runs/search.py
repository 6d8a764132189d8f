"""Finding runs: filter, order, page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tensormeter.errors import UsageError
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.runs.fields import Field, find_field
from tensormeter.server.query.runs.filter import parse_filter
from tensormeter.server.store import RunSummary, Store

__all__ = ["find_runs"]


@dataclass(frozen=True)
class _Order:
    field: Field
    descending: bool


def find_runs(
    store: Store,
    project: str | None,
    *,
    filter_text: str = "",
    sort: str = "",
    limit: int,
    offset: int,
    metrics: Sequence[str] | None = None,
    check: Check = no_check,
    damaged: list[str] | None = None,
) -> tuple[list[RunSummary], int]:
    """A page of the runs that fulfil a filter, in order, and how many fulfil it.

    Archived runs are left out unless the filter speaks of `archived`. `check` is called for each field that is looked at and for
    each run; whatever it raises ends the search. `damaged` is as for `Store.runs`.

    Raises:
        UsageError: Filter or order cannot be understood.
    """
    condition = parse_filter(filter_text, check)
    orders = _parse_sort(sort or "-started")
    shows_archived = any(field.name == "archived" for field in condition.fields.values())
    fields = [*condition.fields.values(), *(order.field for order in orders), find_field("archived")]
    table = store.table(project, [*dict.fromkeys(name for field in fields for name in field.stored)], check)
    predicate = condition.bind(table.columns)
    archived = table.columns["archived"]
    rows = []
    for row in range(len(table.runs)):
        check()
        if (shows_archived or not archived[row]) and predicate(row):
            rows.append(row)
    # Sorting is stable, so the least important goes first; among equals the newest.
    rows.sort(key=table.runs.__getitem__, reverse=True)
    for order in reversed(orders):
        column = order.field.column(table.columns)
        present = [row for row in rows if column[row] is not None]
        missing = [row for row in rows if column[row] is None]
        present.sort(key=_key(column, present), reverse=order.descending)
        rows = present + missing
    page = rows[offset : offset + limit]
    return store.runs([table.runs[row] for row in page], metrics, damaged), len(rows)


def _parse_sort(text: str) -> Sequence[_Order]:
    orders = []
    for part in text.split(","):
        name = part.strip()
        if not name.lstrip("-+"):
            raise UsageError(f"sort: expected names of fields between commas, got {text[:80]!r}")
        try:
            field = find_field(name.removeprefix("-").removeprefix("+").strip("`"))
        except UsageError as error:
            raise UsageError(f"sort: {error}") from None
        orders.append(_Order(field, name.startswith("-")))
    if len(orders) > 8:
        raise UsageError(f"sort: expected at most 8 fields, got {len(orders)}")
    return orders


def _key(column: Sequence[Any], rows: Sequence[int]) -> Callable[[int], Any]:
    """The key of a row: the value itself where all are of one sort, as they nearly always are."""
    types = {type(column[row]) for row in rows}
    if types <= {int, float, bool} or types == {str}:
        return column.__getitem__
    return lambda row: _sortable(column[row])


def _sortable(value: Any) -> tuple[int, Any]:
    """Numbers before text before everything else."""
    if isinstance(value, int | float):
        return 0, value
    if isinstance(value, str):
        return 1, value
    return 2, str(value)
