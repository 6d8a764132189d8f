"""The common representation of media items, such as tables, images and texts.

Media items do not use the hot path. A log call copies an item to a file next to the ring, and the agent reads the file.
The agent also does slower work, such as compressing images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import CAPTION_CHARACTERS, TEXT_BYTES, too_large
from tensormeter.record.values.outcomes import Refused
from tensormeter.record.warn_once import describe, shown, text_of
from tensormeter.ring.format import Drop

__all__ = ["EventContent", "Media", "caption_of", "read_media_file", "refusal_of", "text_content", "to_line"]


class EventContent:
    """The content of one media file: a JSON body and binary data.

    Attributes:
        event: Event name of the log record that the agent creates from the file.
        body: Body of the log record, stored as one line of JSON.
        data: Bytes of an image, a video, an audio clip, or of several images. If the body has a `content_type`, the item is
            encoded. Otherwise, `data` contains the elements of an array, and the body has its `shape` and `dtype`. Several
            images are concatenated. The body's `images` list then has an entry for each image, with the same keys and the
            `size` of the image in bytes.
        remarks: Sentences about what was changed or left out, for warnings.
        omitted: Number of parts, such as images in a table, that could not be recorded.
    """

    __slots__ = ("body", "data", "event", "omitted", "remarks")

    def __init__(
        self,
        event: str,
        body: Mapping[str, Any] | str,
        data: bytes = b"",
        *,
        remarks: Sequence[str] = (),
        omitted: int = 0,
    ) -> None:
        self.event = event
        self.body = body if isinstance(body, str) else json_text(body)
        self.data = data
        self.remarks = remarks
        self.omitted = omitted


class Media:
    """A loggable item other than a number.

    Constructors copy arrays, files and text, so the caller may change the originals afterwards. Constructors do not raise if the
    data cannot be recorded. Instead, `log` writes a warning with the key.
    """

    def pack(self) -> EventContent:
        """Return a snapshot of the item.

        Raises:
            Refused: The item cannot be recorded, for example because it is too large.
        """
        raise NotImplementedError


def text_content(event: str, body: Mapping[str, Any], noun: str, advice: str, reason: Drop) -> EventContent:
    """Return the content of an event whose body consists of texts.

    Args:
        event: Name of the event.
        body: Body of the log record.
        noun: Noun for the item in messages, such as "the text".
        advice: Remedy for an item that is too large.
        reason: Reason under which an item that is too large is counted.

    Raises:
        Refused: The body is larger than 4 MiB as JSON.
    """
    size, encoded = max(len(value) for value in body.values() if isinstance(value, str)), ""
    if size <= TEXT_BYTES:  # a larger one is not even encoded
        encoded = json_text(body)
        size = json_bytes(body, encoded)
    if size > TEXT_BYTES:
        raise Refused(too_large(size, TEXT_BYTES, noun, advice), reason)
    return EventContent(event, encoded)


def to_line(content: EventContent, **about: Any) -> bytes:
    """Return the first line of a media file. It contains the event name, the body and the entries of `about`."""
    prefix = json_text({"event": content.event, **about}).removesuffix("}")
    return f'{prefix},"body":{content.body}}}\n'.encode("utf-8", "surrogatepass")


def caption_of(caption: object) -> str:
    """Convert a caption to text of limited length. None becomes an empty text."""
    text = "" if caption is None else text_of(caption)
    return text if len(text) <= CAPTION_CHARACTERS else f"{text[: CAPTION_CHARACTERS - 1]}…"


def read_media_file(path: str | Path, limit: int) -> bytes:
    """Read a file, but at most one byte more than a limit. Blocks while it reads.

    Raises:
        Refused: The file cannot be read.
    """
    try:
        path = Path(path)
        if not path.is_file():
            raise Refused(f"cannot read {shown(str(path))}: it is not an existing file")
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {shown(str(path))}: {getattr(error, 'strerror', None) or error}") from None


def refusal_of(error: Exception) -> Refused:
    """Return the refusal for an exception that an item's own code raised. A refusal is returned unchanged."""
    return error if isinstance(error, Refused) else Refused(f"cannot copy it ({describe(error)})")
