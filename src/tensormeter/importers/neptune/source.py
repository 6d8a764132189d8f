"""The runs of an export, as sources of an import."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tensormeter.importers.neptune.attributes import read_attributes
from tensormeter.importers.neptune.export import RunExport, find_runs, step_multiplier
from tensormeter.importers.neptune.run_import import RunImport
from tensormeter.importers.registry import ImportContext, Options, SourceError

__all__ = ["ExportedRun", "find"]


def find(address: str, options: Options) -> Iterator["ExportedRun"]:
    """Yield the runs of an export, whose folder or folder of Parquet files is at the path."""
    path = Path(address)
    if path.is_dir():
        projects: dict[Path, list[RunExport]] = {}
        for run in find_runs(path):
            projects.setdefault(run.files, []).append(run)
        for runs in projects.values():
            steps = _Steps(runs)
            yield from (ExportedRun(run, steps) for run in runs)


class _Steps:
    """The multiplier for the steps of all runs of a project, so that their charts have one axis."""

    def __init__(self, runs: Sequence[RunExport]) -> None:
        self._runs = runs
        self.is_noted = False

    @cached_property
    def multiplier(self) -> int:
        return step_multiplier(self._runs)


@dataclass(frozen=True)
class ExportedRun:
    """One run."""

    run: RunExport
    steps: _Steps

    @property
    def label(self) -> str:
        return str(self.run.parts[0])

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in self.run.parts)

    def send(self, context: ImportContext) -> None:
        """Send the run. Rows that cannot be read are reported."""
        attributes = read_attributes(self.run)
        if not attributes.run_id:
            raise SourceError(f"{self.label}: the run cannot be read, and was skipped")
        multiplier = self.steps.multiplier
        if multiplier > 1 and not self.steps.is_noted:
            self.steps.is_noted = True
            context.note(
                f"{self.run.parts[0].parent}: steps have decimals, so all of them are multiplied by {multiplier:,}"
            )
        RunImport(self.run, attributes, multiplier, context).send()
        context.advance(self.size)
