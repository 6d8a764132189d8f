"""Long tables, which `tensormeter export` writes: a row for each point or distribution."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.errors import EncodingError
from tensormeter.importers.registry import ImportContext, SourceError
from tensormeter.importers.run_requests import Numbers, RunRequests
from tensormeter.importers.table.cells import integers_of, labels_of, numbers_of, times_of
from tensormeter.importers.table.files import Block
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.document import parse_document

__all__ = ["LongTable"]

_PROCESS: Final = ("project", "run", "process", "rank", "attempt")
_SERIES: Final = (*_PROCESS, "metric", "attributes", "unit")
_MOST_PROCESSES: Final = 10_000
_COUNT: Final = re.compile(r"\d{1,9}", re.ASCII)
_FORMULAS: Final = ("'=", "'+", "'-", "'@", "'\t", "'\r")
"""Beginnings of names that the export has protected from spreadsheets with a quotation mark."""


@dataclass
class _Process:
    requests: RunRequests
    last_time: int


class LongTable:
    """The runs of a long table. Call `add` for each block of rows, in order, and `finish` at the end."""

    def __init__(self, path: Path, context: ImportContext) -> None:
        self._path = path
        self._context = context
        self._processes: dict[tuple[str, ...], _Process] = {}
        self._runs: set[tuple[str, str]] = set()

    def add(self, block: Block) -> None:
        """Add a block of rows. Raises SourceError if the table has too many processes."""
        count = len(next(iter(block.values())))
        block = {**{name: [None] * count for name in ("step", "time", "value")}, **block}
        labels = [labels_of(block[name]) if name in block else None for name in _SERIES]
        groups: NDArray[np.int64] = np.zeros(count, np.int64)
        for label in labels:
            if label is not None:
                groups = groups * len(label.texts) + label.codes
                _, groups = np.unique(groups, return_inverse=True)
        steps, has_step, _, _ = numbers_of(block["step"])
        times, has_time = times_of(block["time"], 0)
        has_time &= times > 0
        self._context.tally.leave_out("rows without a time", count - int(has_time.sum()))
        values, has_value, _, _ = numbers_of(block["value"])
        integers, is_integer = integers_of(block["integer" if "integer" in block else "value"])
        for group in range(int(groups.max(initial=-1)) + 1):
            rows = np.flatnonzero((groups == group) & has_time)
            if not len(rows):
                continue
            key = tuple("" if label is None else _name(label.text(rows[0])) for label in labels)
            process = self._process(key[: len(_PROCESS)], int(times[rows[0]]))
            process.last_time = max(process.last_time, int(times[rows].max()))
            series = _Series(process.requests, key[5], _attributes(key[6]), key[7])
            for part, stepped in ((rows[has_step[rows]], True), (rows[~has_step[rows]], False)):
                whole = is_integer[part]  # floats beside them would round integers beyond 2^53
                for numbers, points in ((integers, part[whole]), (values, part[~whole & has_value[part]])):
                    if len(points):
                        placed = steps[points].astype(np.int64) if stepped else None
                        series.points(placed, times[points], numbers[points])
                others = part[~whole & ~has_value[part]]
                if len(others):
                    self._distributions(series, block, others, steps if stepped else None, times)

    def finish(self) -> None:
        """End the runs."""
        for process in self._processes.values():
            process.requests.finish("finished", process.last_time)

    def _process(self, key: tuple[str, ...], time: int) -> _Process:
        process = self._processes.get(key)
        if process is not None:
            return process
        if len(self._processes) >= _MOST_PROCESSES:
            raise SourceError(f"{self._path}: has more than {_MOST_PROCESSES:,} processes; split the file")
        project, run, instance, rank, attempt = key
        if self._context.options.name and not self._runs <= {(project, run)}:
            raise SourceError(f"{self._path}: --name is for one run, but the table has several; leave it out")
        process = self._processes[key] = _Process(self._context.run(), time)
        process.requests.start(
            self._context.project(project),
            run,
            self._context.name(run),
            started=time,
            resource={"tensormeter.imported_from": "table"},
            rank=int(rank) if _COUNT.fullmatch(rank) else None,
            attempt=int(attempt) if _COUNT.fullmatch(attempt) else 1,
            process=instance,
            counted=(project, run) not in self._runs,
        )
        self._runs.add((project, run))
        return process

    def _distributions(
        self, series: "_Series", block: Block, rows: NDArray[np.int64], steps: Numbers | None, times: NDArray[np.int64]
    ) -> None:
        """Add rows with explicit buckets. Rows without are counted."""
        if "counts" not in block or "bounds" not in block:
            self._context.tally.leave_out("rows without a value", len(rows))
            return
        for row in rows.tolist():
            bounds, counts = _list(block["bounds"][row]), _list(block["counts"][row])
            if not counts or len(counts) != len(bounds) + 1:
                self._context.tally.leave_out("distributions without buckets")
                continue
            statistics = {name: _number(block[name][row]) if name in block else None for name in ("sum", "min", "max")}
            step = None if steps is None else int(steps[row])
            series.distribution(step, int(times[row]), bounds, counts, statistics)


@dataclass(frozen=True)
class _Series:
    requests: RunRequests
    metric: str
    attributes: Mapping[str, Any]
    unit: str

    def points(self, steps: NDArray[np.int64] | None, times: NDArray[np.int64], values: Numbers) -> None:
        if self.metric == STEP_METRIC:
            if steps is not None:
                self.requests.place(steps, times)
            return
        self.requests.points(self.metric, steps, times, values, self.unit, self.attributes)

    def distribution(
        self,
        step: int | None,
        time: int,
        bounds: Sequence[float],
        counts: Sequence[float],
        statistics: Mapping[str, float | None],
    ) -> None:
        self.requests.histogram(
            self.metric,
            step,
            time,
            [-np.inf, *bounds, np.inf],
            counts,
            minimum=statistics["min"],
            maximum=statistics["max"],
            total=statistics["sum"],
            unit=self.unit,
            attributes=self.attributes,
        )


def _attributes(text: str) -> dict[str, Any]:
    try:
        document = parse_document(text) if text else {}
    except EncodingError:
        return {}
    if not isinstance(document, Mapping):
        return {}
    return {str(key): value for key, value in document.items() if isinstance(value, bool | int | float | str)}


def _name(text: str) -> str:
    return text[1:] if text.startswith(_FORMULAS) else text


def _list(cell: Any) -> list[float]:
    """Return the numbers in a cell: JSON text, a list, or a scalar of Arrow."""
    value = cell.as_py() if hasattr(cell, "as_py") else cell
    if isinstance(value, str):
        try:
            value = parse_document(value)
        except EncodingError:
            return []
    numbers = [_number(number) for number in value] if isinstance(value, list) else []
    return [] if None in numbers else numbers  # type: ignore[return-value]


def _number(cell: Any) -> float | None:
    value = cell.as_py() if hasattr(cell, "as_py") else cell
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
