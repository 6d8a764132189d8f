"""The common part of audio clips and videos: an encoded file, or an array that the agent encodes."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

from tensormeter.conventions.limits import MEDIA_BYTES, PIXEL_BYTES, too_large
from tensormeter.conventions.media_types import content_type_of
from tensormeter.record.media.arriving import ArrivingMedia
from tensormeter.record.media.item import EventContent, caption_of, read_media_file
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

__all__ = ["Clip"]


class Clip(ArrivingMedia):
    """An audio clip or a video. If its data cannot be read, `pack` raises the reason."""

    _EVENT: ClassVar[str]
    _NOUN: ClassVar[str]
    _ADVICE: ClassVar[str]
    """Remedy for a clip that is too large."""

    def __init__(self, data: Any, caption: str | None, read: Callable[[Any], None]) -> None:
        """
        Args:
            data: Data of the clip.
            caption: Text to show with the clip.
            read: Function that reads the data into this object. It may raise anything.
        """
        self._body: dict[str, Any] = {"caption": caption_of(caption)}
        self._data = b""
        self._remarks: list[str] = []
        self._fault: Refused | None = None
        self._begin(data, read)

    def _fail(self, refusal: Refused) -> None:
        self._fault = refusal

    def pack(self) -> EventContent:
        self._check_arrival()
        if self._fault is not None:
            raise self._fault
        limit = MEDIA_BYTES if "content_type" in self._body else PIXEL_BYTES
        if len(self._data) > limit:
            raise Refused(too_large(len(self._data), limit, self._NOUN, self._ADVICE), Drop.MEDIA_TOO_LARGE)
        return EventContent(self._EVENT, self._body, self._data, remarks=self._remarks)

    def _read_file(self, data: Any, types: Collection[str], expected: str) -> bool:
        """Read a path or encoded bytes. Return False if the data is neither.

        Raises:
            Refused: The contents have none of the content types.
        """
        kind = type(data)
        if issubclass(kind, str | Path):
            data, kind = read_media_file(data, MEDIA_BYTES), bytes
        if not issubclass(kind, bytes | bytearray | memoryview):
            return False
        self._data = bytes(data)
        content_type = content_type_of(self._data)
        if content_type not in types:
            raise Refused(expected)
        self._body["content_type"] = content_type
        return True
