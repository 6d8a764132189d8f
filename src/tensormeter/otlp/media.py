"""Tables, images, texts and alerts: what travels as OTLP log records beside the metrics.

A log record is not a time series, so here the step may be an attribute; on a metric it never is.

| event name | body | attributes |
|---|---|---|
| `tensormeter.table` | `columns`: names; `rows`: lists of scalars and bodies of images | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.image` | `data`: bytes; `content_type`; `width`, `height` in pixels; `caption` | the same |
| `tensormeter.text` | `text`; `content_type` | the same |
| `tensormeter.alert` | `title`; `text`; `level`: `INFO`, `WARN` or `ERROR` | `tensormeter.step` |

`tensormeter.run.start` (`config`) and `tensormeter.run.end` (`state`) travel in the same way.
`tensormeter.conventions.limits` says how large each may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, cast

from tensormeter.conventions.limits import ALERT_CHARACTERS, IMAGE_BYTES, TABLE_CELLS, TEXT_BYTES, too_large
from tensormeter.conventions.semconv import ALERT_EVENT, IMAGE_EVENT, MEDIA_KEY, TABLE_EVENT, TEXT_EVENT
from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Event, Value

__all__ = ["ALERT_LEVELS", "Alert", "Image", "Media", "Table", "Text", "TooLargeError", "media_of"]

"""Attribute with the name under which something was logged."""

ALERT_LEVELS: Final = ("INFO", "WARN", "ERROR")

Scalar = None | bool | int | float | str


class TooLargeError(EncodingError):
    """The item is over its limit; the message names its key, size and limit.

    Attributes:
        kind: What it is: `image`, `table`, `text` or `alert`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _Media:
    """What all four have in common: fields are the keys of the body, but for `key`."""

    EVENT: ClassVar[str]

    def event(self, time: int, step: int | None) -> Event:
        """The log record.

        Args:
            time: Nanoseconds since the Unix epoch.
            step: Of the training loop, if there is one.
        """
        body = self._body()
        attributes: dict[str, Attribute] = {} if step is None else {STEP_METRIC: step}
        if "key" in body:
            attributes[MEDIA_KEY] = cast("str", body.pop("key"))
        return Event(self.EVENT, time, body, attributes)

    def _body(self) -> dict[str, Value]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Image(_Media):
    """A picture in an encoded form, such as PNG. As text it is its caption.

    Raises:
        TooLargeError: It is larger than `limits.IMAGE_BYTES`.
        EncodingError: It is of no type of image.
    """

    EVENT: ClassVar = IMAGE_EVENT
    key: str
    data: bytes = field(repr=False)
    content_type: str
    width: int
    height: int
    caption: str = ""

    def __post_init__(self) -> None:
        _check_size("image", self.key, len(self.data), IMAGE_BYTES, "log a smaller one, or a JPEG")
        if not self.content_type.startswith("image/"):
            raise EncodingError(
                f"image {self.key!r}: expected a media type such as image/png, got {self.content_type!r}"
            )

    def __str__(self) -> str:
        return self.caption or "(image)"


@dataclass(frozen=True)
class Table(_Media):
    """Rows under named columns. The images in its cells have no key of their own: theirs is "".

    Raises:
        TooLargeError: There are more cells and rows than `limits.TABLE_CELLS`, or its images are larger than
            `limits.IMAGE_BYTES` together.
        EncodingError: A row is of another length than the header.
    """

    EVENT: ClassVar = TABLE_EVENT
    key: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Scalar | Image]]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise EncodingError(
                    f"table {self.key!r}: expected {len(self.columns)} cells in each row, got {len(row)} in row {number}",
                )
        if len(self.rows) * (len(self.columns) + 1) > TABLE_CELLS:
            raise TooLargeError(
                "table",
                f"table {self.key!r}: expected at most {TABLE_CELLS} cells and rows together, got {len(self.rows)} rows of "
                f"{len(self.columns)} cells: log it in parts",
            )
        size = sum(len(cell.data) for row in self.rows for cell in row if isinstance(cell, Image))
        _check_size(
            "table", self.key, size, IMAGE_BYTES, "log it in parts, or smaller images", part="'s images together"
        )

    def _body(self) -> dict[str, Value]:
        rows = [[_bare(cell) if isinstance(cell, Image) else cell for cell in row] for row in self.rows]
        return super()._body() | {"rows": rows}


@dataclass(frozen=True)
class Text(_Media):
    """A text, plain or in Markdown.

    Raises:
        TooLargeError: It has more characters than `limits.TEXT_BYTES`.
    """

    EVENT: ClassVar = TEXT_EVENT
    key: str
    text: str
    content_type: str = "text/plain"

    def __post_init__(self) -> None:
        _check_size("text", self.key, len(self.text), TEXT_BYTES, "log it in parts")


@dataclass(frozen=True)
class Alert(_Media):
    """Something a person should look at.

    Raises:
        TooLargeError: The text has more than `limits.ALERT_CHARACTERS`.
        EncodingError: The level is unknown.
    """

    EVENT: ClassVar = ALERT_EVENT
    title: str
    text: str = ""
    level: Literal["INFO", "WARN", "ERROR"] = "INFO"

    def __post_init__(self) -> None:
        if len(self.text) > ALERT_CHARACTERS:
            raise TooLargeError(
                "alert", f"alert {self.title[:100]!r}: expected at most {ALERT_CHARACTERS} characters of text"
            )
        if self.level not in ALERT_LEVELS:
            raise EncodingError(
                f"alert {self.title!r}: expected a level of {', '.join(ALERT_LEVELS)}, got {self.level!r}"
            )


Media = Table | Image | Text | Alert

_KINDS: Final[dict[str, type[Media]]] = {kind.EVENT: kind for kind in (Table, Image, Text, Alert)}


def media_of(event: Event) -> tuple[Media, int | None] | None:
    """What an event carries, and its step; None if it is another event.

    Raises:
        EncodingError: It has such a name, and another shape.
    """
    kind = _KINDS.get(event.name)
    if kind is None:
        return None
    body: dict[str, Any] = dict(cast("dict[str, Any]", event.body)) if isinstance(event.body, dict) else {}
    known = {one.name for one in fields(kind)}
    if MEDIA_KEY in event.attributes and "key" in known:
        body["key"] = event.attributes[MEDIA_KEY]
    step = event.attributes.get(STEP_METRIC)
    try:
        if kind is Table:
            body["rows"] = [[_image_in(cell) for cell in row] for row in body.get("rows", ())]
        media = kind(**{name: value for name, value in body.items() if name in known})
    except (TypeError, AttributeError) as error:
        raise EncodingError(f"{event.name}: {error}") from None
    return media, step if isinstance(step, int) else None


def _bare(image: Image) -> dict[str, Value]:
    """An image in a cell, which has the table's key."""
    return {name: value for name, value in image._body().items() if name != "key"}


def _image_in(cell: Any) -> Any:
    """The image that a cell holds, or the cell as it is."""
    if not isinstance(cell, dict) or not isinstance(cell.get("data"), bytes):
        return cell
    known = {one.name for one in fields(Image)} - {"key"}
    return Image("", **{name: value for name, value in cell.items() if name in known})


def _check_size(kind: str, key: str, size: int, limit: int, advice: str, *, part: str = "") -> None:
    if size > limit:
        raise TooLargeError(kind, too_large(size, limit, f"{kind} {key!r}{part}", advice))
