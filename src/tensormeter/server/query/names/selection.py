"""Selection of names by prefix, search, kind and origin, and pages of the selected names."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.system_metrics import SYSTEM_PREFIXES
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.names.search import search_names
from tensormeter.server.store.models.names import DISTRIBUTION, NUMBER, NameTable

__all__ = ["NamePage", "NameSelection", "decode_name", "encode_name", "page_of", "select_names"]


@dataclass(frozen=True)
class NameSelection:
    """A selection of metric names.

    Attributes:
        prefix: Beginning of the names.
        search: Regular expression or text that the names contain, see `search_names`; "" to select all.
        numeric: Whether to select names of gauges and sums (True) or distributions (False); None to select both.
        system: Whether to select the names of metrics that the training script did not log (True) or the other names
            (False); None to select both.
    """

    prefix: str = ""
    search: str = ""
    numeric: bool | None = None
    system: bool | None = None


@dataclass(frozen=True)
class NamePage:
    """A page of names.

    Attributes:
        names: Names on the page, in ascending order.
        next: Last name on the page; None if no name follows.
        total: Number of selected names on all pages.
    """

    names: list[str]
    next: str | None
    total: int


def select_names(table: NameTable, selection: NameSelection, check: Check = no_check) -> NDArray[np.int64]:
    """Return the rows of the selected names, in ascending order.

    Args:
        table: Names.
        selection: Names to select.
        check: Function called repeatedly; it can raise an exception to stop the selection.
    """
    first, stop = table.below(encode_name(selection.prefix))
    rows = search_names(table, first, stop, selection.search, check) if selection.search else np.arange(first, stop)
    if selection.numeric is not None:
        rows = rows[(table.kinds[rows] & (NUMBER if selection.numeric else DISTRIBUTION)) != 0]
    if selection.system is not None:
        is_system = np.zeros(len(table), np.bool_)
        for start, end in _system_rows(table):
            is_system[start:end] = True
        rows = rows[is_system[rows] == selection.system]
    return rows


def page_of(table: NameTable, rows: NDArray[np.int64], limit: int, after: str | None) -> NamePage:
    """Return a page of selected names.

    Args:
        table: Names.
        rows: Rows of the selected names.
        limit: Maximum number of names on the page.
        after: Name that precedes the page; None for the first page.
    """
    first = 0
    if after is not None:
        # The row of the first name that is greater. A name is greater than another one that it starts with.
        first = int(np.searchsorted(rows, table.row_of(encode_name(after) + b"\0")))
    page = rows[first : first + limit]
    names = [decode_name(table[row]) for row in page.tolist()]
    return NamePage(names, names[-1] if first + len(page) < len(rows) else None, len(rows))


def encode_name(name: str) -> bytes:
    """Return a name as UTF-8, as in a `NameTable`."""
    return name.encode(errors="surrogatepass")


def decode_name(name: bytes) -> str:
    """Return a name from a `NameTable` as text."""
    return name.decode(errors="surrogatepass")


def _system_rows(table: NameTable) -> Iterator[tuple[int, int]]:
    for prefix in SYSTEM_PREFIXES:
        yield table.below(prefix.encode())
