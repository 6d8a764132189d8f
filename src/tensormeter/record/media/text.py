"""Text items, which contain plain text or Markdown."""

from typing import Any

from tensormeter.conventions.semconv import TEXT_EVENT
from tensormeter.record.media.item import EventContent, Media, text_content
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Text", "pack_text"]


class Text(Media):
    """Plain text or Markdown to log: ``run.log({"sample": Text("Once upon a time")})``. Plain strings are logged as they are."""

    def __init__(self, text: Any, *, markdown: bool = False) -> None:
        """
        Args:
            text: Text with a size of up to 4 MiB as JSON. Longer text is dropped and counted, with a warning when it is logged.
            markdown: Whether the text is Markdown.
        """
        self._text = text_of(text)
        self._type = "text/markdown" if markdown else "text/plain"

    @property
    def text(self) -> str:
        """The text."""
        return self._text

    def pack(self) -> EventContent:
        return pack_text(self._text, self._type)


def pack_text(text: str, content_type: str = "text/plain", **repeats: int) -> EventContent:
    """Return the content of a text event.

    Args:
        text: The text.
        content_type: Its content type.
        repeats: `first_step` and `count` of a text that was logged several times.

    Raises:
        Refused: The text is too large.
    """
    body = {"text": text, "content_type": content_type, **repeats}
    return text_content(TEXT_EVENT, body, "the text", "log it in parts", Drop.TEXT_TOO_LARGE)
