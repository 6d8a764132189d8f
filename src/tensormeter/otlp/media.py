"""Media items and alerts, which are sent as OTLP log records.

The step is an attribute of the log record. Metrics never have the step as an attribute, because each step would create a new
time series.

| event name | fields of the body | attributes |
|---|---|---|
| `tensormeter.table` | `columns` (names), `rows` (lists of scalars and image bodies), `chart` (optional) | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.image` | `data` (bytes), `content_type`, `width`, `height`, `caption` | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.images` | `images` (image bodies) | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.video` | `data` (bytes), `content_type`, `width`, `height`, `frames`, `caption` | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.audio` | `data` (bytes), `content_type`, `sample_rate`, `caption` | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.figure` | `figure` (Plotly's JSON as text), `caption` | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.html` | `html`, `caption` | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.text` | `text`, `content_type`, `first_step`, `count` | `tensormeter.key`, `tensormeter.step` |
| `tensormeter.alert` | `title`, `text`, `level` (`INFO`, `WARN` or `ERROR`) | `tensormeter.step` |

The events `tensormeter.run.start` (with `config`) and `tensormeter.run.end` (with `state`) are also sent as log records.
Width and height are in pixels, and 0 if they are unknown, as are the number of frames of a video and the samples per second of
an audio clip. If a short text was logged `count` times without a change, a second record of it has `count` and the `first_step`,
and the last step as `tensormeter.step`. The first record has neither field. `tensormeter.conventions.limits` defines the size limits,
and `tensormeter.conventions.charts` the charts of tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, cast

from tensormeter.conventions.charts import ChartError, chart_of, read_chart
from tensormeter.conventions.limits import (
    ALERT_CHARACTERS,
    IMAGE_BYTES,
    MEDIA_BYTES,
    TABLE_CELLS,
    TABLE_IMAGES,
    TEXT_BYTES,
    too_large,
)
from tensormeter.conventions.semconv import (
    ALERT_EVENT,
    AUDIO_EVENT,
    FIGURE_EVENT,
    HTML_EVENT,
    IMAGE_EVENT,
    IMAGES_EVENT,
    MEDIA_KEY,
    TABLE_EVENT,
    TEXT_EVENT,
    VIDEO_EVENT,
)
from tensormeter.errors import EncodingError, join_choices
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Event, Value

__all__ = [
    "ALERT_LEVELS",
    "Alert",
    "Audio",
    "Figure",
    "Html",
    "Image",
    "Images",
    "Media",
    "Table",
    "Text",
    "TooLargeError",
    "Video",
    "media_of",
]

ALERT_LEVELS: Final = ("INFO", "WARN", "ERROR")

Scalar = None | bool | int | float | str


class TooLargeError(EncodingError):
    """Raised when an item exceeds its size limit. The message contains the item's key, its size and the limit.

    Attributes:
        kind: Kind of the item: `image`, `table`, `text`, `alert` or, for all others, `media`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _Media:
    """Base class of all kinds of items. All fields except `key` become fields of the record's body."""

    EVENT: ClassVar[str]

    def event(self, time: int, step: int | None) -> Event:
        """Convert the item to a log record.

        Args:
            time: Time in nanoseconds since the Unix epoch.
            step: Training step, or None.
        """
        body = self._body()
        attributes: dict[str, Attribute] = {} if step is None else {STEP_METRIC: step}
        if "key" in body:
            attributes[MEDIA_KEY] = cast("str", body.pop("key"))
        return Event(self.EVENT, time, body, attributes)

    def _body(self) -> dict[str, Value]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Encoded(_Media):
    """Base class of encoded images, videos and audio clips. Converting an item to a string returns its caption."""

    _NOUN: ClassVar[str]
    _KIND: ClassVar[str]
    """Kind of the item in a `TooLargeError`."""
    _LIMIT: ClassVar[int]
    _ADVICE: ClassVar[str]
    """Remedy for an item that is too large."""
    _TYPES: ClassVar[tuple[str, ...]]
    """Beginnings of valid content types."""
    _EXAMPLE: ClassVar[str]

    key: str
    data: bytes = field(repr=False)
    content_type: str

    def __post_init__(self) -> None:
        _check_size(self._KIND, self.key, len(self.data), self._LIMIT, self._ADVICE)
        if not self.content_type.startswith(self._TYPES):
            raise EncodingError(
                f"{self._NOUN} {self.key!r}: expected a media type such as {self._EXAMPLE}, got {self.content_type!r}"
            )

    def __str__(self) -> str:
        return str(self._body()["caption"] or f"({self._NOUN})")


@dataclass(frozen=True)
class Image(_Encoded):
    """An encoded image, such as a PNG.

    Raises:
        TooLargeError: The image is larger than `limits.IMAGE_BYTES`.
        EncodingError: The content type is not an image type.
    """

    EVENT: ClassVar = IMAGE_EVENT
    _NOUN = _KIND = "image"
    _LIMIT, _ADVICE = IMAGE_BYTES, "log a smaller one, or a JPEG"
    _TYPES, _EXAMPLE = ("image/",), "image/png"

    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Images(_Media):
    """Several images, each with an empty key.

    Raises:
        TooLargeError: There are more than `limits.TABLE_IMAGES` images, or they exceed `limits.IMAGE_BYTES` together.
    """

    EVENT: ClassVar = IMAGES_EVENT
    key: str
    images: Sequence[Image]

    def __post_init__(self) -> None:
        if len(self.images) > TABLE_IMAGES:
            raise TooLargeError(
                "image",
                f"images {self.key!r}: {len(self.images)} exceed the limit of {TABLE_IMAGES}; log fewer at a time",
            )
        size = sum(len(image.data) for image in self.images)
        _check_size("image", self.key, size, IMAGE_BYTES, "log fewer or smaller ones", part=" and those logged with it")

    def _body(self) -> dict[str, Value]:
        return super()._body() | {"images": [_bare(image) for image in self.images]}


@dataclass(frozen=True)
class Video(_Encoded):
    """An encoded video, or an animation in a GIF.

    Raises:
        TooLargeError: The video is larger than `limits.MEDIA_BYTES`.
        EncodingError: The content type is neither a video type nor that of an animation.
    """

    EVENT: ClassVar = VIDEO_EVENT
    _NOUN, _KIND = "video", "media"
    _LIMIT, _ADVICE = MEDIA_BYTES, "log a shorter or smaller one"
    _TYPES, _EXAMPLE = ("video/", "image/"), "video/mp4"

    width: int = 0
    height: int = 0
    frames: int = 0
    caption: str = ""


@dataclass(frozen=True)
class Audio(_Encoded):
    """An encoded audio clip.

    Raises:
        TooLargeError: The clip is larger than `limits.MEDIA_BYTES`.
        EncodingError: The content type is not an audio type.
    """

    EVENT: ClassVar = AUDIO_EVENT
    _NOUN, _KIND = "audio", "media"
    _LIMIT, _ADVICE = MEDIA_BYTES, "log a shorter one, or an MP3"
    _TYPES, _EXAMPLE = ("audio/",), "audio/wav"

    sample_rate: int = 0
    caption: str = ""


@dataclass(frozen=True)
class Html(_Media):
    """An HTML document.

    Raises:
        TooLargeError: The document has more characters than `limits.TEXT_BYTES`.
    """

    EVENT: ClassVar = HTML_EVENT
    key: str
    html: str
    caption: str = ""

    def __post_init__(self) -> None:
        _check_size("media", self.key, len(self.html), TEXT_BYTES, "log a smaller one")


@dataclass(frozen=True)
class Figure(_Media):
    """A Plotly figure, as JSON text with the fields `data` and `layout`.

    Raises:
        TooLargeError: The text has more characters than `limits.TEXT_BYTES`.
    """

    EVENT: ClassVar = FIGURE_EVENT
    key: str
    figure: str
    caption: str = ""

    def __post_init__(self) -> None:
        _check_size("media", self.key, len(self.figure), TEXT_BYTES, "log one with fewer points, or an Image of it")


@dataclass(frozen=True)
class Table(_Media):
    """A table with named columns. Images in its cells have an empty key. A chart describes how to draw its rows.

    Raises:
        TooLargeError: The total number of cells and rows exceeds `limits.TABLE_CELLS`, or the total size of the images exceeds
            `limits.IMAGE_BYTES`.
        EncodingError: The length of a row differs from the number of columns, or the chart is invalid.
    """

    EVENT: ClassVar = TABLE_EVENT
    key: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Scalar | Image]]
    chart: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.chart is not None:
            try:
                object.__setattr__(self, "chart", read_chart(self.chart, self.columns))
            except ChartError as error:
                raise EncodingError(f"the chart of the table {self.key!r}: {error}") from None
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise EncodingError(
                    f"table {self.key!r}: row {number} has {len(row)} cells; expected {len(self.columns)}, one per column",
                )
        if len(self.rows) * (len(self.columns) + 1) > TABLE_CELLS:
            raise TooLargeError(
                "table",
                f"table {self.key!r}: {len(self.rows)} rows of {len(self.columns)} cells exceed the limit of "
                f"{TABLE_CELLS} for cells plus rows; log the table in parts",
            )
        size = sum(len(cell.data) for row in self.rows for cell in row if isinstance(cell, Image))
        _check_size(
            "table", self.key, size, IMAGE_BYTES, "log it in parts, or with smaller images", part="'s images together"
        )

    def _body(self) -> dict[str, Value]:
        rows = [[_bare(cell) if isinstance(cell, Image) else cell for cell in row] for row in self.rows]
        body = super()._body() | {"rows": rows}
        if self.chart is None:
            del body["chart"]
        return body


@dataclass(frozen=True)
class Text(_Media):
    """Plain text or Markdown.

    Raises:
        TooLargeError: The text has more characters than `limits.TEXT_BYTES`.
    """

    EVENT: ClassVar = TEXT_EVENT
    key: str
    text: str
    content_type: str = "text/plain"
    first_step: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        _check_size("text", self.key, len(self.text), TEXT_BYTES, "log it in parts")

    def _body(self) -> dict[str, Value]:
        body = super()._body()
        if self.first_step is None:
            del body["first_step"], body["count"]
        return body


@dataclass(frozen=True)
class Alert(_Media):
    """A message that requires human attention.

    Raises:
        TooLargeError: The text has more characters than `limits.ALERT_CHARACTERS`.
        EncodingError: The level is unknown.
    """

    EVENT: ClassVar = ALERT_EVENT
    title: str
    text: str = ""
    level: Literal["INFO", "WARN", "ERROR"] = "INFO"

    def __post_init__(self) -> None:
        if len(self.text) > ALERT_CHARACTERS:
            raise TooLargeError(
                "alert",
                f"alert {self.title[:100]!r}: the text has {len(self.text)} characters, but the limit is {ALERT_CHARACTERS}; "
                "shorten it",
            )
        if self.level not in ALERT_LEVELS:
            raise EncodingError(
                f"alert {self.title!r}: expected the level {join_choices(*ALERT_LEVELS)}; got {self.level!r}"
            )


Media = Table | Image | Images | Video | Audio | Figure | Html | Text | Alert

_KINDS: Final[dict[str, type[Media]]] = {
    kind.EVENT: kind for kind in (Table, Image, Images, Video, Audio, Figure, Html, Text, Alert)
}


def media_of(event: Event) -> tuple[Media, int | None] | None:
    """Return the item that an event contains and the item's step, or None if the event contains no item.

    Raises:
        EncodingError: The event name indicates an item, but the body is invalid.
    """
    kind = _KINDS.get(event.name)
    if kind is None:
        return None
    body: dict[str, Any] = dict(cast("dict[str, Any]", event.body)) if isinstance(event.body, dict) else {}
    names = {field.name for field in fields(kind)}
    if MEDIA_KEY in event.attributes and "key" in names:
        body["key"] = event.attributes[MEDIA_KEY]
    step = event.attributes.get(STEP_METRIC)
    try:
        if kind is Table:
            body["rows"] = [[_image_in(cell) for cell in row] for row in body.get("rows", ())]
            body["chart"] = chart_of(body.get("chart"), body.get("columns", ()))
        elif kind is Images:
            body["images"] = [_image_in(image) for image in body.get("images", ())]
        media = kind(**{name: value for name, value in body.items() if name in names})
    except (TypeError, AttributeError) as error:
        raise EncodingError(f"{event.name}: {error}") from None
    return media, step if isinstance(step, int) else None


def _bare(image: Image) -> dict[str, Value]:
    """Return the body of an image in a table cell. The body omits the key, because the table's key applies to the image."""
    return {name: value for name, value in image._body().items() if name != "key"}


def _image_in(cell: Any) -> Any:
    """Convert a cell to an image if it contains an image. Otherwise, return the cell unchanged."""
    if not isinstance(cell, dict) or not isinstance(cell.get("data"), bytes):
        return cell
    names = {field.name for field in fields(Image)} - {"key"}
    return Image("", **{name: value for name, value in cell.items() if name in names})


def _check_size(kind: str, key: str, size: int, limit: int, advice: str, *, part: str = "") -> None:
    if size > limit:
        raise TooLargeError(
            kind, too_large(size, limit, f"{kind if kind != 'media' else 'item'} {key!r}{part}", advice)
        )
