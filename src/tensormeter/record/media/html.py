"""HTML documents."""

from pathlib import Path
from typing import Any

from tensormeter.conventions.limits import TEXT_BYTES
from tensormeter.conventions.semconv import HTML_EVENT
from tensormeter.record.media.item import EventContent, Media, caption_of, read_media_file, refusal_of, text_content
from tensormeter.record.values.outcomes import Refused
from tensormeter.record.warn_once import text_of
from tensormeter.ring.format import Drop

__all__ = ["Html"]


class Html(Media):
    """An HTML document: ``run.log({"report": Html("<h1>Results</h1>")})``.

    The page shows it in a sandbox without scripts, forms, links to other pages or network access. Styles, and images and fonts in
    `data:` URLs, work.
    """

    def __init__(self, data: Any, caption: str | None = "") -> None:
        """
        Args:
            data: HTML text of up to 4 MiB as JSON, an open file, or a path. Text without `<` that names a file is a path.
            caption: Text to show with the document, truncated to 65,536 characters.
        """
        self._caption = caption_of(caption)
        self._html = ""
        self._fault: Refused | None = None
        try:
            self._html = _read(data)
        except Exception as error:  # the data's own code may raise anything
            self._fault = refusal_of(error)

    def pack(self) -> EventContent:
        if self._fault is not None:
            raise self._fault
        body = {"html": self._html, "caption": self._caption}
        return text_content(HTML_EVENT, body, "the HTML", "log a smaller document", Drop.MEDIA_TOO_LARGE)


def _read(data: Any) -> str:
    if hasattr(data, "read"):
        data = data.read(TEXT_BYTES + 1)
    elif issubclass(type(data), Path) or (issubclass(type(data), str) and _is_path(data)):
        data = read_media_file(data, TEXT_BYTES)
    if issubclass(type(data), bytes | bytearray):
        return bytes(data).decode("utf-8", "replace")
    if not issubclass(type(data), str):
        raise Refused(f"expected HTML as text, an open file or a path, got a {type(data).__name__}")
    return text_of(data)


def _is_path(text: str) -> bool:
    if "<" in text or "\n" in text or len(text) > 1024:
        return False
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
