"""The common representation of tables, images and texts, which scripts log in addition to numbers.

Media items do not use the hot path. A log call copies the item to a file next to the ring, and the agent reads the file.
The agent also does the slower work, such as compressing an image.
"""

from collections.abc import Mapping
from typing import Any

from tensormeter.conventions.fitting import json_text

__all__ = ["EventContent", "Media", "to_line"]


class EventContent:
    """Content of one media file: a JSON body and binary data.

    Attributes:
        event: Event name of the log record that the agent creates from the file.
        body: Body of the record, as JSON on one line.
        data: Bytes of an image or of a table's images. If the body has a `content_type`, the image is encoded. Otherwise, the
            data holds rows of pixels, and the body has their `shape` and `dtype`. A table's images are concatenated. For each
            image, `images` in the table's body has an entry with the same keys and the image's `size`.
    """

    __slots__ = ("body", "data", "event")

    def __init__(self, event: str, body: Mapping[str, Any] | str, data: bytes = b"") -> None:
        self.event = event
        self.body = body if isinstance(body, str) else json_text(body)
        self.data = data


class Media:
    """A loggable item that is not a number. The item copies its values, so the caller may change the originals afterwards."""

    def pack(self) -> EventContent:
        """Return a snapshot of the item.

        Raises:
            Refused: The item cannot be recorded, for example because it is larger than its limit.
        """
        raise NotImplementedError


def to_line(content: EventContent, **about: Any) -> bytes:
    """Return the first line of a media file, which contains the event name, the body and the entries of `about`."""
    prefix = json_text({"event": content.event, **about}).removesuffix("}")
    return f'{prefix},"body":{content.body}}}\n'.encode("utf-8", "surrogatepass")
