"""The contents of a trackio project, whichever way it is stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

from tensormeter.errors import EncodingError
from tensormeter.importers.bounded_parsing import parse_json

__all__ = [
    "NOT_FINITE",
    "LoggedRow",
    "ProjectStore",
    "RecordedAlert",
    "RecordedRun",
    "StoredArtifact",
    "decode_json",
    "nanoseconds",
]

NOT_FINITE: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""Numbers by the text that trackio stores instead of them."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class RecordedRun:
    """A run of a project.

    Attributes:
        run_id: ID of the run. In projects from before trackio 0.24, it is the name.
        name: Name of the run.
        config: Configuration, with trackio's own entries `_Username`, `_Created` and `_Group`.
    """

    run_id: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)


class LoggedRow(NamedTuple):
    """A row: its step (None for system metrics), its time in nanoseconds since the Unix epoch, its values, and its size in bytes."""

    step: int | None
    time: int
    values: Mapping[str, Any]
    size: int


@dataclass(frozen=True)
class RecordedAlert:
    """An alert. Its time is in nanoseconds since the Unix epoch."""

    title: str
    text: str
    level: str
    step: int | None
    time: int


@dataclass(frozen=True)
class StoredArtifact:
    """A version of an artifact that a run has written.

    Attributes:
        name: Name.
        kind: Type, such as `model`.
        version: Number of the version.
        aliases: Aliases of the version.
        size: Size in bytes.
        files: Number of files.
        time: Time in nanoseconds since the Unix epoch.
    """

    name: str
    kind: str
    version: int
    aliases: tuple[str, ...]
    size: int
    files: int
    time: int


class ProjectStore(Protocol):
    """A project that is read. Damaged rows are counted and skipped.

    Each method may raise `SourceError` if the store cannot be read.
    """

    def runs(self) -> list[RecordedRun]:
        """Return the runs, in the order in which they began."""
        ...

    def rows(self, run: RecordedRun) -> Iterator[LoggedRow]:
        """Yield the rows of a run in the order of their steps."""
        ...

    def system_rows(self, run: RecordedRun) -> Iterator[LoggedRow]:
        """Yield the rows of system metrics of a run in the order of their times."""
        ...

    def alerts(self, run: RecordedRun) -> Iterator[RecordedAlert]:
        """Yield the alerts of a run."""
        ...

    def artifacts(self, run: RecordedRun) -> Iterator[StoredArtifact]:
        """Yield the artifacts that a run has written."""
        ...

    def left_out(self) -> Mapping[str, int]:
        """Return the number of items of the project that are not imported, by kind."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


def nanoseconds(text: object) -> int | None:
    """Return a time as nanoseconds since the Unix epoch; None if it is invalid. Times without a zone are in UTC."""
    try:
        moment = text if isinstance(text, datetime) else datetime.fromisoformat(str(text))
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // _MICROSECOND * 1000 if _EPOCH < moment < _LATEST else None
    except (ValueError, OverflowError):
        return None


def decode_json(data: object) -> Any:
    """Return a JSON document from text or bytes; None if it is invalid."""
    try:
        return parse_json(data) if isinstance(data, str | bytes) else None
    except EncodingError:
        return None
