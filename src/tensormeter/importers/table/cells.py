"""Cells of a column, from text, JSON or Arrow, as arrays."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.run_requests import MOST_INTEGER, Numbers

__all__ = ["Cells", "Labels", "integers_of", "labels_of", "numbers_of", "times_of"]

Cells = Any
"""Cells of one column in a block: texts or JSON values, or an array of pyarrow."""

_INTEGER: Final = str.maketrans("", "", "0123456789-")
_MISSING: Final = frozenset({"", "null", "None", "NULL", "NA", "N/A"})
_NANOSECONDS: Final = re.compile(r"[.,]\d{6}(\d{1,3})", re.ASCII)
"""Digits of a time after those that `datetime` reads."""

_WHOLE: Final = re.compile(r"-?\d{1,19}", re.ASCII)
_LARGEST: Final = 1 << 1023
"""An integer that a float can represent."""

_SCALES: Final = ((1e17, 1), (1e14, 1_000), (1e11, 1_000_000), (1e8, 1_000_000_000))
"""Nanoseconds per unit of a time, by the least number that is taken for a time in that unit."""

_MOST_SECONDS: Final = 9_000_000_000
"""Seconds since the Unix epoch that fit into 64 bits as nanoseconds."""


class Labels(NamedTuple):
    """Texts of a column: the different ones, and the index of each row's text, int64, shape (n,)."""

    texts: list[str]
    codes: NDArray[np.int64]

    def text(self, row: int) -> str:
        """Return the text of a row."""
        return self.texts[int(self.codes[row])]


def numbers_of(cells: Cells) -> tuple[Numbers, NDArray[np.bool_], str, int]:
    """Return the numbers of a column.

    Returns:
        Values, float64 or int64, shape (n,), with 0 where there is none. A mask of the rows that have a number. A noun phrase
        for other cells that are not empty, and their count.
    """
    if hasattr(cells, "type"):
        return _arrow_numbers(cells)
    if all(isinstance(cell, str) for cell in cells):
        return _text_numbers(cells)
    return _json_numbers(cells)


def _text_numbers(cells: Sequence[str]) -> tuple[Numbers, NDArray[np.bool_], str, int]:
    present: NDArray[np.bool_] = np.array([cell not in _MISSING for cell in cells], bool)
    texts = cells if present.all() else [cell for cell in cells if cell not in _MISSING]
    others = 0
    found: Numbers
    try:
        found = _parse(texts)
    except ValueError:
        numbers = [_number(cell) for cell in cells]
        present = np.array([number is not None for number in numbers], bool)
        others = sum(number is None and cell not in _MISSING for number, cell in zip(numbers, cells, strict=True))
        found = np.array([number for number in numbers if number is not None], np.float64)
    if present.all():
        return found, present, "cells of text", others
    values: Numbers = np.zeros(len(cells), np.int64) if found.dtype == np.int64 else np.zeros(len(cells), np.float64)
    values[present] = found
    return values, present, "cells of text", others


def _parse(texts: Sequence[str]) -> Numbers:
    if not "".join(texts).translate(_INTEGER):
        try:
            return np.array(list(map(int, texts)), np.int64)
        except (OverflowError, ValueError):
            pass
    return np.array(list(map(float, texts)), np.float64)


def _number(text: str) -> float | None:
    if text in _MISSING:
        return None
    if text in ("True", "true", "False", "false"):
        return float(text in ("True", "true"))
    try:
        return float(text)
    except ValueError:
        return None


def _json_numbers(cells: Sequence[Any]) -> tuple[Numbers, NDArray[np.bool_], str, int]:
    numbers = [_json_number(cell) for cell in cells]
    present: NDArray[np.bool_] = np.array([number is not None for number in numbers], bool)
    others = sum(number is None and cell is not None for number, cell in zip(numbers, cells, strict=True))
    is_integer = all(isinstance(number, int) and abs(number) < 1 << 63 for number in numbers if number is not None)
    filled = [number or 0 for number in numbers]
    values: Numbers = np.array(filled, np.int64) if is_integer else np.array(filled, np.float64)
    return values, present, "cells of text or nested values", others


def _json_number(cell: Any) -> int | float | None:
    if isinstance(cell, bool):
        return int(cell)
    if isinstance(cell, float) or (isinstance(cell, int) and abs(cell) < _LARGEST):
        return cell
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(cell) if isinstance(cell, str) else None


def _arrow_numbers(cells: Any) -> tuple[Numbers, NDArray[np.bool_], str, int]:
    import pyarrow as pa

    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    kind = cells.type
    present = cells.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(kind):
        cells = cells.cast(pa.int8())
    elif pa.types.is_decimal(kind):
        cells = cells.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        noun = str(kind).partition("<")[0].partition("[")[0]
        return np.zeros(len(cells)), np.zeros(len(cells), bool), f"cells of type {noun}", int(present.sum())
    values = (
        cells.fill_null(0).to_numpy(zero_copy_only=False) if cells.null_count else cells.to_numpy(zero_copy_only=False)
    )
    is_integer = values.dtype.kind in "iu" and (values.dtype != np.uint64 or values.max(initial=0) <= MOST_INTEGER)
    return values.astype(np.int64 if is_integer else np.float64, copy=False), present, "", 0


def integers_of(cells: Cells) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the integers of 64 bits in a column, int64, shape (n,), with 0 for other cells, and which rows have one."""
    if hasattr(cells, "type"):
        values, present, _, _ = numbers_of(cells)
        return values.astype(np.int64), present & (values.dtype.kind == "i")
    integers = [_integer(cell) for cell in cells]
    is_integer: NDArray[np.bool_] = np.array([number is not None for number in integers], bool)
    return np.array([number or 0 for number in integers], np.int64), is_integer


def _integer(cell: Any) -> int | None:
    number = int(cell) if isinstance(cell, str) and _WHOLE.fullmatch(cell) else cell
    return number if type(number) is int and abs(number) <= MOST_INTEGER else None


def labels_of(cells: Cells) -> Labels:
    """Return the texts of a column. Missing cells are ""."""
    if hasattr(cells, "type"):
        import pyarrow as pa

        encoded = cells if pa.types.is_dictionary(cells.type) else cells.dictionary_encode()
        texts = ["" if text is None else str(text) for text in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        if (codes < 0).any():
            codes = np.where(codes < 0, len(texts), codes)
            texts.append("")
        return Labels(texts, codes)
    index: dict[str, int] = {}
    codes = np.array([index.setdefault("" if cell is None else str(cell), len(index)) for cell in cells], np.int64)
    return Labels(list(index), codes)


def times_of(cells: Cells, base: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the times of a column in nanoseconds since the Unix epoch, int64, shape (n,), and which rows have one.

    Numbers are nanoseconds, microseconds, milliseconds or seconds since the epoch, by their size. Smaller numbers are
    seconds since `base`. Texts are ISO 8601, in UTC unless they have an offset.
    """
    if hasattr(cells, "type"):
        import pyarrow as pa

        if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
            seconds, moments = (
                cells.cast(pa.timestamp(unit), safe=False).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
                for unit in ("s", "ns")
            )
            present = cells.is_valid().to_numpy(zero_copy_only=False) & (np.abs(seconds) < _MOST_SECONDS)
            return moments, present
        if not (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type)):
            cells = cells.to_pylist()
    values, present, _, others = numbers_of(cells)
    if others:
        moments = [_iso(cell) for cell in cells]
        present = np.array([moment is not None for moment in moments], bool)
        return np.array([moment or 0 for moment in moments], np.int64), present
    if not present.any():
        return np.zeros(len(values), np.int64), present
    largest = float(np.abs(values[present].astype(np.float64)).max())
    if not math.isfinite(largest):
        present = present & np.isfinite(values.astype(np.float64))
        largest = float(np.abs(values[present].astype(np.float64)).max(initial=0))
    scale = next((scale for least, scale in _SCALES if largest >= least), 0)
    if values.dtype.kind == "i" and scale:
        present = present & (np.abs(values) <= MOST_INTEGER // scale)
        return np.where(present, values, 0).astype(np.int64) * scale, present
    moments = np.where(present, values, 0).astype(np.float64) * (scale or 1e9)
    present = present & (np.abs(moments) < MOST_INTEGER)
    return np.round(np.where(present, moments, 0)).astype(np.int64) + (0 if scale else base), present


def _iso(cell: Any) -> int | None:
    try:
        moment = datetime.fromisoformat(str(cell))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    if abs(since.days) * 86_400 >= _MOST_SECONDS:
        return None
    digits = _NANOSECONDS.search(str(cell))
    nanoseconds = 0 if digits is None else int(digits[1].ljust(3, "0"))
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000 + nanoseconds
