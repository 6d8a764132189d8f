"""Bases of exporters that decode requests: a body that cannot be read is rejected, a disk that fails is retried."""

import abc
from pathlib import Path

from tensormeter.errors import EncodingError
from tensormeter.exporter import Outcome, Rejected, Request, Retry

__all__ = ["DecodingExporter", "FileExporter"]


class DecodingExporter(abc.ABC):
    """Implements `tensormeter.exporter.Exporter` for a destination that decodes requests. Subclasses implement `deliver`."""

    def export(self, request: Request) -> Outcome:
        """Deliver one request. A body that cannot be decoded is `Rejected`: it would fail every time."""
        try:
            return self.deliver(request)
        except EncodingError as error:
            return Rejected(str(error))

    @abc.abstractmethod
    def deliver(self, request: Request) -> Outcome:
        """Decode one request and write its items.

        Raises:
            EncodingError: The body cannot be decoded. Nothing was written.
        """

    def shutdown(self) -> None:  # noqa: B027 - most destinations keep nothing open
        """Release the open resources of the exporter. Does nothing unless a subclass overrides it."""


class FileExporter(DecodingExporter):
    """Base of exporters that write files into a folder.

    Attributes:
        directory: The folder.
    """

    def __init__(self, directory: Path) -> None:
        """Use the folder; nothing is created yet."""
        self.directory = directory

    def export(self, request: Request) -> Outcome:
        """Deliver one request. If the disk fails, it is retried."""
        try:
            return super().export(request)
        except OSError as error:
            return Retry(f"{self.directory}: {error.strerror or error}")
