"""Attributes of a Neptune run with a single value: what Neptune itself has recorded, and the configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tensormeter.importers.neptune.export import PARAMETER_TYPES, RunExport

__all__ = ["RunAttributes", "read_attributes"]

_COLUMNS: Final = (
    "project_id",
    "run_id",
    "attribute_path",
    "attribute_type",
    *(f"{kind}_value" for kind in PARAMETER_TYPES),
)

_TRANSIENT: Final = frozenset(
    {"sys/ping_time", "sys/running_time", "sys/monitoring_time", "sys/size", "sys/state", "sys/trashed"}
)
"""Attributes that describe Neptune's service rather than the run."""

_NAMED: Final = frozenset({"sys/name", "sys/description", "sys/tags", "sys/custom_run_id"})
"""Attributes that become other fields of a run."""


@dataclass
class RunAttributes:
    """Attributes of a run.

    Attributes:
        project: Project, such as `workspace/project`; "" if no row names it.
        run_id: ID of the run: in Neptune 3 the one that the script chose, and in Neptune 2 such as `RUN-1`.
        values: Values by path.
    """

    project: str = ""
    run_id: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def text(self, path: str) -> str:
        """Return a text; "" if there is none."""
        value = self.values.get(path)
        return value if isinstance(value, str) else ""

    def texts(self, path: str) -> list[str]:
        """Return the texts of a set."""
        value = self.values.get(path)
        return [str(text) for text in value] if isinstance(value, list) else []

    def time(self, path: str) -> int | None:
        """Return a time in nanoseconds since the Unix epoch, or None."""
        value = self.values.get(path)
        return int(value.timestamp() * 1000) * 1_000_000 if isinstance(value, datetime) else None

    @property
    def is_version_3(self) -> bool:
        """Whether the run is from Neptune 3, where its ID is not the one that the service has assigned."""
        return self.run_id != self.text("sys/id")

    @property
    def parent(self) -> tuple[str, float] | None:
        """ID of the run from which this one was forked, and the step; None if it was not forked."""
        parent, step = self.text("sys/forking/parent"), self.values.get("sys/forking/step")
        return (parent, float(step)) if parent and isinstance(step, int | float) else None

    def config(self) -> dict[str, Any]:
        """Return the attributes that scripts have set, nested at the slashes of their paths."""
        config: dict[str, Any] = {}
        for path, value in sorted(self.values.items()):
            if path not in _TRANSIENT | _NAMED:
                _put(config, path, value.isoformat() if isinstance(value, datetime) else value)
        return config


def read_attributes(run: RunExport) -> RunAttributes:
    """Read the attributes with a single value, as far as the files can be read."""
    attributes = RunAttributes()
    for project, run_id, path, value in _values(run):
        attributes.project = attributes.project or project
        attributes.run_id = attributes.run_id or run_id
        if value is not None:
            attributes.values[path] = value
    return attributes


def _values(run: RunExport) -> Iterator[tuple[str, str, str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = pa.array(PARAMETER_TYPES)
    for batch in run.batches(_COLUMNS, lambda fault: None):
        if batch.num_rows:
            first = batch.slice(0, 1).to_pylist()[0]
            yield str(first["project_id"]), str(first["run_id"]), "", None
        for row in batch.filter(pc.is_in(batch.column("attribute_type"), kinds)).to_pylist():
            yield str(row["project_id"]), str(row["run_id"]), str(row["attribute_path"]), _value(row)


def _value(row: Mapping[str, Any]) -> Any:
    value = row.get(f"{row['attribute_type']}_value")
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return value


def _put(config: dict[str, Any], path: str, value: Any) -> None:
    """Add a value under its path. If a part of the path has a value, the rest of the path stays in one piece."""
    *folders, name = path.split("/")
    place = config
    for depth, folder in enumerate(folders):
        inner = place.setdefault(folder, {})
        if not isinstance(inner, dict):
            place["/".join(path.split("/")[depth:])] = value
            return
        place = inner
    place[name] = value
