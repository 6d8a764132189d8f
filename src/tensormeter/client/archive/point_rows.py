"""Conversion of blocks of points to rows of an archive."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.archive.arrow import load_arrow
from tensormeter.client.archive.json_text import json_text
from tensormeter.client.archive.table_file import TableFile
from tensormeter.client.points import PointBlock

__all__ = ["PointRows"]

_GROUP_ROWS: Final = 1_000_000
"""Number of rows from which on waiting blocks are written as a row group."""

_GROUP_BLOCKS: Final = 20_000


class PointRows:
    """Rows of `points`. Blocks wait until they fill a row group."""

    def __init__(self, file: TableFile, run: Mapping[str, Any], ranks: Mapping[str, int | None]) -> None:
        """
        Args:
            file: Table to write to.
            run: Values of the columns `project` and `run`.
            ranks: Rank of each process, by ID.
        """
        self._file = file
        self._run = run
        self._ranks = ranks
        self._blocks: list[PointBlock] = []
        self._rows = 0

    def add(self, block: PointBlock) -> None:
        """Append one row per point, and one without a value per gap."""
        self._blocks.append(block)
        self._rows += len(block) + len(block.gaps)
        if self._rows >= _GROUP_ROWS or len(self._blocks) >= _GROUP_BLOCKS:
            self.flush()

    def flush(self) -> None:
        """Write the waiting blocks."""
        if not self._blocks:
            return
        blocks, self._blocks, self._rows = self._blocks, [], 0
        arrow = load_arrow()
        counts = np.array([len(block) + len(block.gaps) for block in blocks])
        numbers = _Numbers.of(blocks)
        columns: dict[str, Any] = {
            "step": arrow.array(numbers.step, mask=~numbers.stepped),
            "time": arrow.array(numbers.time).cast(arrow.timestamp("ns", "UTC")),
            "value": arrow.array(numbers.value, mask=numbers.gap, from_pandas=False),  # NaN is a value
            "integer": arrow.array(numbers.integer, mask=~numbers.is_integer),
            "attempt": arrow.array(np.repeat([block.attempt for block in blocks], counts)),
            "rank": _repeated([self._ranks.get(block.process) for block in blocks], counts, arrow.int64()),
            "monotonic": _repeated([block.monotonic for block in blocks], counts, arrow.bool_()),
            "attributes": _coded([json_text(block.attributes) for block in blocks], counts),
        }
        for name, value in self._run.items():
            columns[name] = _coded([value], np.array([counts.sum()]))
        for name in ("process", "metric", "scope", "unit", "kind", "temporality"):
            columns[name] = _coded([getattr(block, name) for block in blocks], counts)
        self._file.write([columns[name] for name in self._file.schema.names])


class _Numbers:
    """Columns of several blocks together. Gaps are rows in order of time, with `gap` set."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.time, self.step, self.stepped, self.value, self.integer, self.is_integer, self.gap = arrays

    @classmethod
    def of(cls, blocks: Sequence[PointBlock]) -> "_Numbers":
        parts = [_with_gaps(block) for block in blocks]
        return cls([np.concatenate(columns) for columns in zip(*parts, strict=True)])


def _with_gaps(block: PointBlock) -> tuple[NDArray[Any], ...]:
    columns = (block.time, block.step, block.stepped, block.value, block.integer, block.is_integer)
    gap = np.zeros(len(block), np.bool_)
    if not len(block.gaps):
        return *columns, gap
    n = len(block.gaps)
    order = np.argsort(np.concatenate((block.time, block.gaps)), kind="stable")
    fillers = (block.gaps, *(np.zeros(n, column.dtype) for column in columns[1:]), np.ones(n, np.bool_))
    return tuple(np.concatenate(pair)[order] for pair in zip((*columns, gap), fillers, strict=True))


def _coded(values: Sequence[str | None], counts: NDArray[np.int64]) -> Any:
    """Return a dictionary array in which each value is repeated. None becomes null."""
    arrow = load_arrow()
    codes: dict[str, int] = {}
    of_blocks = np.array([-1 if value is None else codes.setdefault(value, len(codes)) for value in values], np.int32)
    indices = np.repeat(of_blocks, counts)
    return arrow.DictionaryArray.from_arrays(
        arrow.array(indices, mask=indices < 0), arrow.array([*codes], arrow.string())
    )


def _repeated(values: Sequence[Any], counts: NDArray[np.int64], kind: Any) -> Any:
    arrow = load_arrow()
    numbers = [value if isinstance(value, int) else None for value in values]
    return arrow.array(numbers, kind).take(arrow.array(np.repeat(np.arange(len(values)), counts)))
