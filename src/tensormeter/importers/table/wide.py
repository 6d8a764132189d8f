"""Wide tables, which have a row for each step and a column for each metric."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.registry import ImportContext, SourceError
from tensormeter.importers.run_requests import RunRequests
from tensormeter.importers.table.cells import labels_of, numbers_of, times_of
from tensormeter.importers.table.files import Block, read_blocks
from tensormeter.importers.table.layout import Layout

__all__ = ["send_wide"]

_MILLISECOND: Final = 1_000_000
_MOST_RUNS: Final = 10_000


@dataclass
class _Run:
    requests: RunRequests
    last_time: int


def send_wide(path: Path, layout: Layout, context: ImportContext) -> None:
    """Send the runs of a wide table.

    Raises:
        SourceError: The file cannot be read as a table, or only in part.
    """
    table = _Table(path, layout, context)
    try:
        for block in read_blocks(path, context.tally, context.advance):
            table.add(block)
    except SourceError:
        table.finish()
        raise
    table.finish()


class _Table:
    def __init__(self, path: Path, layout: Layout, context: ImportContext) -> None:
        self._path = path
        self._layout = layout
        self._context = context
        self._base = path.stat().st_mtime_ns
        self._runs: dict[str, _Run] = {}
        self._rows = 0
        self._identity = ""

    def add(self, block: Block) -> None:
        """Add a block of rows."""
        layout, tally = self._layout, self._context.tally
        count = len(next(iter(block.values())))
        numbers = np.arange(self._rows, self._rows + count)
        self._rows += count
        if not self._identity:
            self._identity = f"{self._path.name}\0" + "\0".join(f"{name}={cells[0]}" for name, cells in block.items())
        steps, has_step = self._steps(block, numbers)
        times, has_time = (
            times_of(block[layout.time], self._base)
            if layout.time in block
            else (self._base + numbers * _MILLISECOND, np.ones(count, bool))
        )
        times = np.where(has_time & (times > 0), times, self._base + numbers * _MILLISECOND)
        tally.leave_out("rows without a step", count - int(has_step.sum()))
        if layout.run in block:
            labels = labels_of(block[layout.run])
            rows = [(text, np.flatnonzero((labels.codes == code) & has_step)) for code, text in enumerate(labels.texts)]
        else:
            rows = [("", np.flatnonzero(has_step))]
        metrics = []
        for name, cells in block.items():
            if name in (layout.step, layout.time, layout.run):
                continue
            values, present, noun, others = numbers_of(cells)
            tally.leave_out(noun, others)
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
        if self._layout.step not in block:
            return numbers, np.ones(len(numbers), bool)
        values, present, _, _ = numbers_of(block[self._layout.step])
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                present = present & (values == np.floor(values)) & (np.abs(values) < 2.0**63)
            values = np.where(present, values, 0)
        return values.astype(np.int64), present

    def _run(self, text: str, time: int) -> _Run:
        run = self._runs.get(text)
        if run is None:
            if len(self._runs) >= _MOST_RUNS:
                raise SourceError(f"{self._path}: has more than {_MOST_RUNS:,} runs; choose another --run-column")
            run = self._runs[text] = _Run(self._context.run(), time)
            name = text or self._path.stem
            digest = hashlib.sha256(f"{self._identity}\0{text}".encode("utf-8", "replace")).hexdigest()[:8]
            readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80]
            run.requests.start(
                self._context.project(),
                f"{readable}-{digest}".lstrip("-"),
                text or self._context.name(name),
                started=time,
                resource={"tensormeter.imported_from": "table"},
            )
        return run
