"""Wide tables, which have a row for each step and a column for each metric."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.registry import ImportContext, SourceError
from tensormeter.importers.run_requests import EXACT, Numbers, RunRequests
from tensormeter.importers.table.cells import integers_of, labels_of, numbers_of, times_of
from tensormeter.importers.table.files import Block
from tensormeter.importers.table.layout import Layout

__all__ = ["WideTable"]

_MILLISECOND: Final = 1_000_000
_MOST_RUNS: Final = 10_000


@dataclass
class _Run:
    requests: RunRequests
    last_time: int


class WideTable:
    """The runs of a wide table. Call `add` for each block of rows, in order, and `finish` at the end."""

    def __init__(self, path: Path, layout: Layout, context: ImportContext) -> None:
        self._path = path
        self._layout = layout
        self._context = context
        self._base = path.stat().st_mtime_ns
        self._runs: dict[str, _Run] = {}
        self._rows = 0
        self._identity = ""

    def add(self, block: Block) -> None:
        """Add a block of rows. Raises SourceError if the table has too many runs."""
        layout, tally = self._layout, self._context.tally
        count = len(next(iter(block.values())))
        numbers = np.arange(self._rows, self._rows + count)
        self._rows += count
        if not self._identity:
            self._identity = f"{self._path.name}\0" + "\0".join(f"{name}={cells[0]}" for name, cells in block.items())
        steps, has_step = self._steps(block, numbers)
        if not self._runs and has_step.any():
            self._restore_base(block, numbers, int(has_step.argmax()))
        times = self._times(block, numbers, self._base)
        tally.leave_out("rows without a step", count - int(has_step.sum()))
        if layout.run and layout.run in block:
            labels = labels_of(block[layout.run])
            rows = [(text, np.flatnonzero((labels.codes == code) & has_step)) for code, text in enumerate(labels.texts)]
        else:
            rows = [("", np.flatnonzero(has_step))]
        metrics: list[tuple[str, Numbers, NDArray[np.bool_]]] = []
        for name, cells in block.items():
            if name and name in (layout.step, layout.time, layout.run):
                continue
            values, present, noun, others = numbers_of(cells)
            tally.leave_out(noun, others)
            if values.dtype.kind == "f" and (np.abs(values) > EXACT).any():
                integers, is_integer = integers_of(cells)
                metrics.append((name, integers, is_integer))
                present = present & ~is_integer
            metrics.append((name, values, present))
        for text, chosen in rows:
            if not len(chosen):
                continue
            run = self._run(text, int(times[chosen[0]]))
            placed = run.requests.place(steps[chosen], times[chosen])
            run.last_time = max(run.last_time, int(placed.max()))
            for name, values, present in metrics:
                there = present[chosen]
                if there.all():
                    run.requests.placed_points(name, placed, values[chosen])
                elif there.any():
                    run.requests.placed_points(name, placed[there], values[chosen[there]])

    def finish(self) -> None:
        """End the runs."""
        for run in self._runs.values():
            run.requests.finish("finished", run.last_time)

    def _steps(self, block: Block, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not self._layout.step or self._layout.step not in block:
            return numbers, np.ones(len(numbers), bool)
        values, present, _, _ = numbers_of(block[self._layout.step])
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                present = present & (values == np.floor(values)) & (np.abs(values) < 2.0**63)
            values = np.where(present, values, 0)
        return values.astype(np.int64), present

    def _times(self, block: Block, numbers: NDArray[np.int64], base: int) -> NDArray[np.int64]:
        instead = base + numbers * _MILLISECOND
        if not self._layout.time or self._layout.time not in block:
            return instead
        times, has_time = times_of(block[self._layout.time], base)
        return np.where(has_time & (times > 0), times, instead)

    def _restore_base(self, block: Block, numbers: NDArray[np.int64], row: int) -> None:
        """Use the times of an earlier import, because the time of the file changes when rows are appended.

        Args:
            block: Block with the first row of a run.
            numbers: Numbers of the rows in the table.
            row: Index of that row.
        """
        api, context = self._context.api, self._context
        first, later = (int(self._times(block, numbers, base)[row]) for base in (self._base, self._base + 1))
        if api is None or first == later:  # the times do not depend on the base
            return
        run = self._layout.run
        text = labels_of(block[run]).text(row) if run and run in block else ""
        wanted = f'id = "{self._run_id(text)}" and (archived = true or archived = false)'
        runs = api.get("runs", project=context.project(), filter=wanted, fields="", limit=1)["runs"]
        if runs:
            self._base += int(runs[0]["started"]) - first

    def _run_id(self, text: str) -> str:
        digest = hashlib.sha256(f"{self._identity}\0{text}".encode("utf-8", "replace")).hexdigest()[:8]
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text or self._path.stem).strip("-._")[:80]
        return f"{readable}-{digest}".lstrip("-")

    def _run(self, text: str, time: int) -> _Run:
        run = self._runs.get(text)
        if run is None:
            if self._runs and self._context.options.name:
                raise SourceError(f"{self._path}: --name is for one run, but the table has several; leave it out")
            if len(self._runs) >= _MOST_RUNS:
                raise SourceError(f"{self._path}: has more than {_MOST_RUNS:,} runs; choose another --run-column")
            run = self._runs[text] = _Run(self._context.run(), time)
            run.requests.start(
                self._context.project(),
                self._run_id(text),
                self._context.name(text or self._path.stem),
                started=time,
                resource={"tensormeter.imported_from": "table"},
            )
        return run
