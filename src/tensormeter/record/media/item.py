"""The common representation of media items: tables, images and text items.

Media items do not use the hot path. A log call copies an item to a file next to the ring, and the agent reads the file.
The agent also does slower work, such as compressing images.
"""

from collections.abc import Mapping
from typing import Any

from tensormeter.conventions.fitting import json_text

__all__ = ["EventContent", "Media", "to_line"]


class EventContent:
    """The content of one media file: a JSON body and binary data.

    Attributes:
        event: Event name of the log record that the agent creates from the file.
        body: Body of the log record, stored as one line of JSON.
        data: Bytes of an image or of a table's images. If the body has a `content_type`, the image is encoded. Otherwise,
            `data` contains rows of pixels, and the body has their `shape` and `dtype`. The images of a table are concatenated.
            The body's `images` list then has an entry for each image, with the same keys and the `size` of the image in bytes.
    """

    __slots__ = ("body", "data", "event")

    def __init__(self, event: str, body: Mapping[str, Any] | str, data: bytes = b"") -> None:
        self.event = event
        self.body = body if isinstance(body, str) else json_text(body)
        self.data = data


class Media:
    """A loggable item other than a number. It copies its values, so the caller may change the originals afterwards."""

    def pack(self) -> EventContent:
        """Return a snapshot of the item.

        Raises:
            Refused: The item cannot be recorded, for example because it is too large.
        """
        raise NotImplementedError


def to_line(content: EventContent, **about: Any) -> bytes:
    """Return the first line of a media file. It contains the event name, the body and the entries of `about`."""
    prefix = json_text({"event": content.event, **about}).removesuffix("}")
    return f'{prefix},"body":{content.body}}}\n'.encode("utf-8", "surrogatepass")
