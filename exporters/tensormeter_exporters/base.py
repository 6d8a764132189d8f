"""Base classes of exporters that decode requests."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from tensormeter.errors import EncodingError
from tensormeter.exporter import Outcome, Rejected, Request, Retry

__all__ = ["UNCHANGED", "DecodingExporter", "FileExporter"]

UNCHANGED: Final[Mapping[str, str]] = dict.fromkeys(
    ("text", "table", "image", "images", "video", "audio", "figure", "html"), "the log record"
)
"""Media of a destination that receives OTLP log records as they are."""


class DecodingExporter(abc.ABC):
    """Base class of exporters that decode requests. Subclasses implement `deliver`.

    Attributes:
        media: Form in which the destination stores each kind of media, for the documentation. Other kinds are refused.
    """

    media: ClassVar[Mapping[str, str]] = {}

    def export(self, request: Request) -> Outcome:
        """Deliver one request. A body that cannot be decoded is `Rejected`, because every retry would fail."""
        try:
            return self.deliver(request)
        except EncodingError as error:
            return Rejected(str(error))

    @abc.abstractmethod
    def deliver(self, request: Request) -> Outcome:
        """Decode one request and write its items.

        Raises:
            EncodingError: The body cannot be decoded. Nothing has been written.
        """

    def shutdown(self) -> None:  # noqa: B027 - most destinations keep nothing open
        """Release the exporter's open resources. The default does nothing."""


class FileExporter(DecodingExporter):
    """Base class of exporters that write files to a folder.

    Attributes:
        directory: Folder for the files.
    """

    def __init__(self, directory: Path) -> None:
        """Create an exporter without creating the folder."""
        self.directory = directory

    def export(self, request: Request) -> Outcome:
        """Deliver one request. Disk errors are returned as `Retry`."""
        try:
            return super().export(request)
        except OSError as error:
            return Retry(f"{self.directory}: {error.strerror or error}")
