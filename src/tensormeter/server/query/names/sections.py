"""Sections: the tree that the slashes in names form."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.query.names.selection import decode_name, encode_name
from tensormeter.server.store.models.names import NameTable

__all__ = ["SectionPage", "direct_rows", "sections_of"]


@dataclass(frozen=True)
class SectionPage:
    """A page of the sections at one level.

    Attributes:
        sections: Name of each section without the prefix, and number of names in it.
        direct: Number of names at this level that are in no section.
        next: Name of the last section on the page; None if no section follows.
        total: Number of names at and below this level.
    """

    sections: list[tuple[str, int]]
    direct: int
    next: str | None
    total: int


def sections_of(table: NameTable, rows: NDArray[np.int64], prefix: str, limit: int, after: str | None) -> SectionPage:
    """Return a page of the sections below a prefix. A section consists of the names up to their next slash.

    Sections are in ascending order of their names with the slash.

    Args:
        table: Names.
        rows: Rows of the selected names, which start with the prefix.
        prefix: Beginning of the names; "" or a text that ends with a slash.
        limit: Maximum number of sections on the page.
        after: Section that precedes the page; None for the first page.
    """
    start = encode_name(prefix)
    is_direct = _is_direct(table, rows, len(start))
    inside = rows[~is_direct]
    first = 0
    if after is not None:
        first = int(np.searchsorted(inside, table.below(start + encode_name(after) + b"/")[1]))
    sections: list[tuple[str, int]] = []
    size = 1
    while first < len(inside) and len(sections) < limit:
        name = table[int(inside[first])]
        slash = name.index(b"/", len(start))
        following = _end_of(table, inside, first, size, name[: slash + 1])
        size = following - first
        sections.append((decode_name(name[len(start) : slash]), size))
        first = following
    last = sections[-1][0] if sections and first < len(inside) else None
    return SectionPage(sections, int(is_direct.sum()), last, len(rows))


def direct_rows(table: NameTable, rows: NDArray[np.int64], prefix: str) -> NDArray[np.int64]:
    """Return the rows of names that are in no section below a prefix, with which all names must start."""
    return rows[_is_direct(table, rows, len(encode_name(prefix)))]


def _end_of(table: NameTable, rows: NDArray[np.int64], first: int, size: int, section: bytes) -> int:
    """Return the index of the first of the rows after `first` that is not in a section.

    Sections often have equal sizes, so `size`, the size of the previous section, is tried first.
    """
    guess = first + size
    is_inside = guess <= len(rows) and table.starts_with(int(rows[guess - 1]), section)
    if is_inside and (guess == len(rows) or not table.starts_with(int(rows[guess]), section)):
        return guess
    return int(np.searchsorted(rows, table.below(section)[1]))


def _is_direct(table: NameTable, rows: NDArray[np.int64], skipped: int) -> NDArray[np.bool_]:
    """Return whether each name contains no slash after the first `skipped` bytes."""
    if not len(rows):
        return np.empty(0, np.bool_)
    first, stop = int(rows[0]), int(rows[-1]) + 1
    offset = table.start(first)
    part = np.frombuffer(table.block, np.uint8)[offset : int(table.ends[stop - 1]) + 1]
    slashes = np.flatnonzero(part == ord("/")) + offset
    starts = np.concatenate(([offset], table.ends[first : stop - 1] + 1))
    direct: NDArray[np.bool_] = np.searchsorted(slashes, table.ends[first:stop]) == np.searchsorted(
        slashes, starts + skipped
    )
    return direct[rows - first]
