"""Reading of the Parquet files that trackio makes of a project, for example to synchronize it with a dataset."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tensormeter.importers.registry import SourceError
from tensormeter.importers.tally import Tally
from tensormeter.importers.trackio.store import LoggedRow, RecordedAlert, RecordedRun, StoredArtifact, nanoseconds

__all__ = ["ParquetStore", "projects_in"]

_CONFIGS: Final = "_configs.parquet"
_SYSTEM: Final = "_system.parquet"
_TRACES: Final = "_traces.parquet"
_COLUMNS: Final = frozenset({"id", "run_id", "run_name", "timestamp", "step", "log_id", "space_id", "created_at"})
"""Columns that are not values."""

_ROWS: Final = 2000
_POINT_BYTES: Final = 8


def projects_in(folder: Path) -> Iterator[Path]:
    """Yield the files with the metrics of projects whose database is not in the folder."""
    for configs in sorted(folder.glob(f"*{_CONFIGS}")):
        metrics = configs.with_name(f"{configs.name.removesuffix(_CONFIGS)}.parquet")
        if metrics.is_file() and not metrics.with_suffix(".db").exists():
            yield metrics


class ParquetStore:
    """The Parquet files of one project. It implements `ProjectStore`.

    Trackio stores no alerts and aliases in them.
    """

    def __init__(self, path: Path, tally: Tally) -> None:
        """
        Args:
            path: File with the metrics.
            tally: Counts of the import.

        Raises:
            SourceError: The package pyarrow is not installed.
        """
        try:
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise SourceError(
                f"reading {path} needs the package pyarrow; run pip install 'tensormeter[parquet]'"
            ) from None
        self._open = pyarrow.parquet.ParquetFile
        self._path = path
        self._tally = tally

    def runs(self) -> list[RecordedRun]:
        runs: dict[str, RecordedRun] = {}
        for row in self._read(self._beside(_CONFIGS)):
            run_id, name = _run_of(row)
            config = {key: value for key, value in row.items() if key not in _COLUMNS and value is not None}
            runs[run_id] = RecordedRun(run_id, name, config)
        for path in (self._path, self._beside(_SYSTEM)):
            for row in self._read(path, ["run_id", "run_name"]):
                run_id, name = _run_of(row)
                runs.setdefault(run_id, RecordedRun(run_id, name))
        return list(runs.values())

    def rows(self, run: RecordedRun) -> Iterator[LoggedRow]:
        return self._rows(self._path, run, has_steps=True)

    def system_rows(self, run: RecordedRun) -> Iterator[LoggedRow]:
        return self._rows(self._beside(_SYSTEM), run, has_steps=False)

    def alerts(self, run: RecordedRun) -> Iterator[RecordedAlert]:
        return iter(())

    def artifacts(self, run: RecordedRun) -> Iterator[StoredArtifact]:
        return iter(())

    def left_out(self) -> Mapping[str, int]:
        artifacts = self._beside("_artifact_versions.parquet")
        return {
            "traces": sum(1 for _ in self._read(self._beside(_TRACES), ["run_id", "run_name"])),
            "artifacts": sum(1 for _ in self._read(artifacts, ["id"])),
        }

    def close(self) -> None: ...

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(f"{self._path.stem}{suffix}")

    def _rows(self, path: Path, run: RecordedRun, *, has_steps: bool) -> Iterator[LoggedRow]:
        for row in self._read(path, run_id=run.run_id):
            time, step = nanoseconds(row.get("timestamp")), row.get("step") if has_steps else None
            if time is None or (has_steps and not isinstance(step, int)):
                self._tally.leave_out("damaged rows")
                continue
            values = {name: value for name, value in row.items() if name not in _COLUMNS and value is not None}
            yield LoggedRow(step, time, values, _POINT_BYTES * len(values))

    def _read(
        self, path: Path, columns: list[str] | None = None, run_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file, or those of one run."""
        if not path.is_file():
            return
        try:
            file = self._open(path)
            names = set(file.schema_arrow.names)
            chosen = None if columns is None else [name for name in columns if name in names]
            for batch in file.iter_batches(_ROWS, columns=chosen):
                rows = batch if run_id is None else batch.filter(_are_of(batch, run_id))
                yield from rows.to_pylist()
        except Exception as error:  # pyarrow raises many types for damaged files
            raise SourceError(f"{path}: cannot read it: {error}") from None


def _run_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return ID and name of a row's run."""
    name = str(row.get("run_name"))
    return str(row.get("run_id") or name), name


def _are_of(batch: Any, run_id: str) -> Any:
    """Return which rows of an Arrow batch belong to a run, by the same rule as `_run_of`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, names = (
        batch.column(name).cast(pa.string()) if name in batch.schema.names else pa.nulls(batch.num_rows, pa.string())
        for name in ("run_id", "run_name")
    )
    has_id = pc.fill_null(pc.not_equal(ids, ""), fill_value=False)
    return pc.equal(pc.if_else(has_id, ids, pc.fill_null(names, str(None))), run_id)
