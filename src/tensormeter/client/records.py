"""Events of a run, such as tables, images, other media, texts, alerts and other log records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from tensormeter.client.connection import Connection
from tensormeter.client.frame import import_pandas
from tensormeter.conventions.charts import chart_of
from tensormeter.conventions.semconv import MEDIA_KEY

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "RecordedImage", "RecordedMedia", "RecordedTable", "RecordedText", "image_bodies", "merge_repeats"]

_LOG_FIELDS: Final = ("severity_number", "severity_text", "trace_id", "span_id", "flags", "scope")


@dataclass(frozen=True)
class Record:
    """An event, which is one log record.

    Attributes:
        name: Name of the event, such as `tensormeter.alert`.
        key: Key under which the event was logged; "" if there is none.
        step: Step of the event; None if there is none.
        time: Time of the event, in nanoseconds since the Unix epoch.
        process: ID of the process.
        attributes: Attributes of the log record.
        body: Body as JSON values. An image's bytes are replaced by their digest, and other bytes are base64-encoded.
        severity_number: OTLP severity number, from 1 (TRACE) to 24 (FATAL4); 0 if there is none.
        severity_text: Name of the severity, as chosen by the sender; "" if there is none.
        trace_id: Hexadecimal ID of the trace; "" if there is none.
        span_id: Hexadecimal ID of the span; "" if there is none.
        flags: OTLP log record flags.
        observed_time: Time when the event was collected, in nanoseconds since the Unix epoch; None if it equals `time`.
        scope: Mapping with `name`, `version` and `attributes` of the instrumentation scope. Missing ones are omitted.
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

    @classmethod
    def of(cls, document: Mapping[str, Any], **others: Any) -> Self:
        """Create a record from an event's API document, and from fields that the document does not have."""
        fields = {name: document[name] for name in ("name", "step", "process", "attributes", "body")}
        # Older servers do not send these fields.
        fields |= {name: document[name] for name in _LOG_FIELDS if name in document}
        observed = document.get("observed_time")
        fields["observed_time"] = None if observed is None else int(observed)
        return cls(key=document["attributes"].get(MEDIA_KEY, ""), time=int(document["time"]), **fields, **others)

    @property
    def _fields(self) -> Mapping[str, Any]:
        """The body if it is a mapping. Any sender may send other bodies."""
        return self.body if isinstance(self.body, Mapping) else {}


@dataclass(frozen=True)
class RecordedTable(Record):
    """An event with a table."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns; empty if the sender did not send any."""
        columns = self._fields.get("columns")
        return [str(column) for column in columns] if isinstance(columns, list) else []

    @property
    def rows(self) -> Sequence[Sequence[Any]]:
        """Cells of each row. NaN and infinities are strings, as everywhere in the API's JSON. An image is a mapping."""
        rows = self._fields.get("rows")
        return [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []

    @property
    def chart(self) -> Mapping[str, Any] | None:
        """Chart that the page draws from the rows, as passed to `Table`; None if there is none or it is invalid."""
        return chart_of(self._fields.get("chart"), self.columns)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table as a DataFrame. In numeric columns, NaN and infinities are numbers.

        Missing cells are None, and cells without a column are left out.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = import_pandas()
        rows = self.rows
        columns = [[row[i] if i < len(row) else None for row in rows] for i in range(len(self.columns))]
        # Use positions as keys, because two columns may have the same name.
        frame = pandas.DataFrame({i: _numbers(column) for i, column in enumerate(columns)}, index=range(len(rows)))
        frame.columns = list(self.columns)
        return frame


@dataclass(frozen=True)
class RecordedMedia(Record):
    """An event with an image, a video or an audio clip."""

    connection: Connection = field(repr=False, compare=False)
    run: tuple[str, str]

    @property
    def content_type(self) -> str:
        """Media type, such as "image/png"."""
        return str(self._fields.get("content_type", ""))

    @property
    def caption(self) -> str:
        """Caption; "" if there is none."""
        return str(self._fields.get("caption", ""))

    def read(self) -> bytes:
        """Download the encoded item.

        Raises:
            TensormeterError: The server does not respond or returns an error.
        """
        project, run_id = self.run
        return self.connection.content("runs", run_id, "media", str(self._fields.get("digest", "")), project=project)[1]


@dataclass(frozen=True)
class RecordedImage(RecordedMedia):
    """An image. Each image of a list that was logged together has a separate object."""


@dataclass(frozen=True)
class RecordedText(Record):
    """A text. A short text that was logged several times without a change has one object."""

    @property
    def text(self) -> str:
        """The text."""
        return str(self._fields.get("text", ""))

    @property
    def first_step(self) -> int | None:
        """Step of the first log call; `step` is the step of the last one."""
        first = self._fields.get("first_step")
        return first if isinstance(first, int) else self.step

    @property
    def count(self) -> int:
        """Number of log calls."""
        count = self._fields.get("count")
        return count if isinstance(count, int) else 1


def image_bodies(body: Any) -> list[dict[str, Any]]:
    """Return the bodies of the images in the body of a `tensormeter.images` event; empty if a sender sent none."""
    images = body.get("images") if isinstance(body, Mapping) else None
    return [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []


def merge_repeats(texts: Iterable[RecordedText]) -> list[RecordedText]:
    """Leave out the first event of each repeated text, because the second one contains all of its steps.

    Args:
        texts: Texts, newest first.
    """
    merged: list[RecordedText] = []
    repeated: set[tuple[str, str, str, int | None]] = set()
    for text in texts:
        key = text.process, text.key, text.text, text.first_step
        if text.count == 1 and key in repeated:
            repeated.remove(key)
            continue
        if text.count > 1:
            repeated.add(key)
        merged.append(text)
    return merged


def _numbers(column: list[Any]) -> list[Any]:
    """Return a column with "NaN" and infinities as numbers, if all its other cells are numbers or None."""
    names = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    others = [value for value in column if not isinstance(value, str) or value not in names]
    numeric = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in others)
    return [names.get(value, value) if isinstance(value, str) else value for value in column] if numeric else column
