"""The contents of an MLflow tracking store, whichever way it is read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.confined_folder import FileEntry

__all__ = [
    "PARENT_TAG",
    "ArtifactSource",
    "Lineage",
    "MetricBlock",
    "Relation",
    "TrackedRun",
    "TrackingStore",
    "restore_infinities",
]

PARENT_TAG: Final = "mlflow.parentRunId"

_LARGEST: Final = float(np.finfo(np.float64).max)
_MOST_ANCESTORS: Final = 100


class MetricBlock(NamedTuple):
    """Points of metrics of one run, in the order in which they are stored.

    Attributes:
        names: Names of the metrics.
        codes: Index of each point's metric in `names`, int64, shape (n,).
        steps: Steps, int64, shape (n,).
        times: Times in milliseconds since the Unix epoch, int64, shape (n,).
        values: Values, float64, shape (n,).
    """

    names: Sequence[str]
    codes: NDArray[np.int64]
    steps: NDArray[np.int64]
    times: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class TrackedRun:
    """A run in a tracking store.

    Attributes:
        run_id: ID of the run.
        name: Name of the run, or "".
        experiment: Name of the experiment.
        status: Status, such as `FINISHED`.
        started: Start in milliseconds since the Unix epoch, or None.
        ended: End in milliseconds since the Unix epoch, or None.
        params: Parameters, which MLflow stores as text.
        tags: Tags.
        artifact_uri: Address of the run's artifacts.
        metrics: Names of the metrics, if the store lists them with the run.
        left_out: Number of items that are not imported, by kind.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started: int | None
    ended: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    artifact_uri: str = ""
    metrics: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


class Relation(NamedTuple):
    """The place of a run among nested runs: its ID, its name, and the ID of its parent or ""."""

    run_id: str
    name: str
    parent: str


class ArtifactSource(Protocol):
    """The artifacts of one run."""

    uri: str
    """Address of the folder."""

    def files(self, at_most: int) -> Iterator[FileEntry]:
        """Yield files at any depth, in the order of their paths."""
        ...

    def read(self, path: str, limit: int) -> bytes:
        """Return the contents of a file.

        Raises:
            FileTooLargeError: The file has more bytes than `limit`.
            SourceError: The file cannot be read.
        """
        ...


class TrackingStore(Protocol):
    """A tracking store that is read. Runs and experiments that were deleted in MLflow are left out."""

    def relations(self) -> Iterator[Relation]:
        """Yield the place of each run among nested runs."""
        ...

    def runs(self) -> Iterator[TrackedRun]:
        """Yield the runs. A damaged run is reported and skipped."""
        ...

    def metrics(self, run: TrackedRun) -> Iterator[MetricBlock]:
        """Yield the points of a run, in blocks of bounded size.

        Raises:
            SourceError: The points cannot be read.
        """
        ...

    def artifacts(self, run: TrackedRun) -> ArtifactSource | None:
        """Return the artifacts of a run; None if this machine cannot read them.

        Raises:
            SourceError: Their folder leads out of the store.
        """
        ...

    def left_out(self) -> Mapping[str, int]:
        """Return the number of items of the store that are not imported, by kind."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


class Lineage:
    """Groups for nested runs: a run with children, and all runs below it, form a group with the name of the topmost run."""

    def __init__(self, relations: Iterable[Relation]) -> None:
        self._runs = {relation.run_id: relation for relation in relations}
        parents = {relation.parent for relation in self._runs.values() if relation.parent in self._runs}
        roots = {run_id for run_id in parents if self._root(run_id) == run_id}
        names = Counter(self._runs[run_id].name for run_id in roots)
        self._groups = {run_id: self._label(run_id, names[self._runs[run_id].name] > 1) for run_id in roots}

    def __len__(self) -> int:
        return len(self._runs)

    def group_of(self, run_id: str) -> str:
        """Return the name of a run's group; "" if the run has neither parent nor children."""
        return self._groups.get(self._root(run_id), "") if run_id in self._runs else ""

    def _root(self, run_id: str) -> str:
        for _ in range(_MOST_ANCESTORS):
            parent = self._runs[run_id].parent
            if parent == run_id or parent not in self._runs:
                break
            run_id = parent
        return run_id

    def _label(self, run_id: str, is_ambiguous: bool) -> str:
        name = self._runs[run_id].name or run_id
        return f"{name} ({run_id[:8]})" if is_ambiguous else name


def restore_infinities(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with infinities where a database of MLflow has the largest double, which it stores instead of them."""
    values[values >= _LARGEST] = np.inf
    values[values <= -_LARGEST] = -np.inf
    return values
