"""Events of a run: tables, images, texts, alerts and whatever else came as a log record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tensormeter.client.connection import Connection
from tensormeter.client.frame import import_pandas
from tensormeter.conventions.semconv import MEDIA_KEY

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "RecordedImage", "RecordedTable"]


_LOG_FIELDS: Final = ("severity_number", "severity_text", "trace_id", "span_id", "flags", "scope")


@dataclass(frozen=True)
class Record:
    """An event.

    Attributes:
        name: Such as `tensormeter.alert`.
        key: Under which it was logged; "" if under none.
        step: Or None.
        time: Nanoseconds since the Unix epoch.
        process: Id of the process.
        attributes: All of them.
        body: JSON values; bytes are base64, or, if they are an image, their digest.
        severity_number: OTLP's number, 1 (TRACE) to 24 (FATAL4); 0 if there is none.
        severity_text: The sender's word for it, or "".
        trace_id: Hexadecimal, or "".
        span_id: The same.
        flags: OTLP's flags of a log record.
        observed_time: When it was collected, in nanoseconds since the Unix epoch, where that differs from `time`; else None.
        scope: `name`, `version` and `attributes` of the instrumentation scope, as far as it has them.
    """

    name: str
    key: str
    step: int | None
    time: int
    process: str
    attributes: Mapping[str, Any] = field(repr=False)
    body: Any = field(repr=False)
    severity_number: int = field(default=0, kw_only=True)
    severity_text: str = field(default="", kw_only=True)
    trace_id: str = field(default="", kw_only=True, repr=False)
    span_id: str = field(default="", kw_only=True, repr=False)
    flags: int = field(default=0, kw_only=True, repr=False)
    observed_time: int | None = field(default=None, kw_only=True, repr=False)
    scope: Mapping[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    @staticmethod
    def fields_of(document: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the constructor, from an event of the API."""
        same = {name: document[name] for name in ("name", "step", "process", "attributes", "body")}
        # Older servers do not send these.
        same |= {name: document[name] for name in _LOG_FIELDS if name in document}
        observed = document.get("observed_time")
        same["observed_time"] = None if observed is None else int(observed)
        return same | {"key": document["attributes"].get(MEDIA_KEY, ""), "time": int(document["time"])}


@dataclass(frozen=True)
class RecordedTable(Record):
    """A table that was logged."""

    @property
    def columns(self) -> Sequence[str]:
        """Names."""
        return list(self.body["columns"])

    @property
    def rows(self) -> Sequence[Sequence[Any]]:
        """Cells by row. NaN and the infinities are texts, as everywhere in the API's JSON."""
        return list(self.body["rows"])

    def to_pandas(self) -> "pd.DataFrame":
        """The table; columns of numbers have NaN and the infinities as numbers.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = import_pandas()
        named = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        # By position: two columns may have one name.
        frame = pandas.DataFrame({i: _numbers(column) for i, column in enumerate(named)}, index=range(len(self.rows)))
        frame.columns = list(self.columns)
        return frame


@dataclass(frozen=True)
class RecordedImage(Record):
    """An image that was logged."""

    connection: Connection = field(repr=False, compare=False)
    run: tuple[str, str]

    @property
    def content_type(self) -> str:
        """Such as "image/png"."""
        return str(self.body["content_type"])

    @property
    def caption(self) -> str:
        """What was said about it."""
        return str(self.body.get("caption", ""))

    def read(self) -> bytes:
        """The encoded picture. Blocks until the server has sent it.

        Raises:
            TensormeterError: No answer, or an error.
        """
        project, run_id = self.run
        return self.connection.content("runs", run_id, "media", self.body["digest"], project=project)[1]


def _numbers(column: list[Any]) -> list[Any]:
    """With numbers for the names of those that JSON lacks, if all else in the column is a number or nothing."""
    names = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    plain = [value for value in column if value not in names]
    numeric = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in plain)
    return [names.get(value, value) if isinstance(value, str) else value for value in column] if numeric else column
