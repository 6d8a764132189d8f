"""Text items, which contain plain text or Markdown."""

from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import TEXT_BYTES, too_large
from tensormeter.conventions.semconv import TEXT_EVENT
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.values.classify import Refused
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Text"]


class Text(Media):
    """Plain text or Markdown to log: ``run.log({"sample": Text("Once upon a time")})``."""

    def __init__(self, text: str, *, markdown: bool = False) -> None:
        """
        Args:
            text: Text with a size of up to 4 MiB as JSON. Longer text is dropped and counted, with a warning when it is logged.
            markdown: Whether the text is Markdown.
        """
        self._text = text_of(text)
        self._type = "text/markdown" if markdown else "text/plain"

    def pack(self) -> EventContent:
        body = {"text": self._text, "content_type": self._type}
        size, text = len(self._text), ""
        if size <= TEXT_BYTES:
            text = json_text(body)
            size = json_bytes(body, text)
        if size > TEXT_BYTES:
            raise Refused(too_large(size, TEXT_BYTES, "the text", "log it in parts"), Drop.TEXT_TOO_LARGE)
        return EventContent(TEXT_EVENT, text)
