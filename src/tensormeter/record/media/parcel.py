"""Tables, images and texts: what a script logs beside numbers.

They are not for the hot path: logging one copies it to a file beside the ring, from where the agent takes it.
What takes longer, such as compressing an image, the agent does.
"""

from collections.abc import Mapping
from typing import Any

from tensormeter.conventions.fitting import json_text

__all__ = ["Media", "Parcel", "to_line"]


class Parcel:
    """What goes into the file: a description as JSON, and bytes.

    Attributes:
        event: Name of the log record that it becomes.
        body: The record's body, as JSON in one line.
        data: Of an image: encoded if the body has a `content_type`, else rows of pixels, of which it has `shape` and `dtype`.
            Of a table: those of its images, one after the other; the body's `images` say the same of each, and its `size`.
    """

    __slots__ = ("body", "data", "event")

    def __init__(self, event: str, body: Mapping[str, Any] | str, data: bytes = b"") -> None:
        self.event = event
        self.body = body if isinstance(body, str) else json_text(body)
        self.data = data


class Media:
    """Something that is logged and is no number. Made of values, not of references: it can be changed afterwards."""

    def pack(self) -> Parcel:
        """A snapshot of it.

        Raises:
            Refused: It cannot be recorded; larger than its limit, for example.
        """
        raise NotImplementedError


def to_line(parcel: Parcel, **about: Any) -> bytes:
    """The first line of the file."""
    head = json_text({"event": parcel.event, **about}).removesuffix("}")
    return f'{head},"body":{parcel.body}}}\n'.encode("utf-8", "surrogatepass")
