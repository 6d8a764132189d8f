"""Requests with log records of several processes, which are sent once enough records have come together."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from tensormeter.errors import EncodingError
from tensormeter.importers.sender import Sender
from tensormeter.otlp.batch import Event
from tensormeter.otlp.encode import encode_events

__all__ = ["INVALID", "RecordRequests", "Resources"]

_MOST_BYTES: Final = 4 << 20
_MOST_RECORDS: Final = 2_000

INVALID: Final = (EncodingError, ValueError, TypeError, OverflowError, RecursionError)
"""Errors of values that OTLP cannot represent."""

Resources = Mapping[str, Mapping[str, Any]]
"""Resource of each process, by the ID of the process."""


class RecordRequests:
    """Requests with log records. Each has up to 2,000 records or 4 MiB, or one larger record."""

    def __init__(
        self, sender: Sender, resources: Resources, report: Callable[[str], None], *, derive_severity: bool
    ) -> None:
        """Create an empty request.

        Args:
            sender: Destination of the requests.
            resources: Resource of each process, by ID.
            report: Function that receives a message about each record that cannot be encoded.
            derive_severity: Whether tensormeter's own events without a severity get one; see `encode_events`.
        """
        self._sender = sender
        self._report = report
        self._resources = resources
        self._derive_severity = derive_severity
        self._parts: list[bytes] = []
        self._waiting: list[Event] = []
        self._process = ""
        self._records = self._bytes = 0

    def add(self, process: str, record: Event, size: int) -> None:
        """Add a record of one process, which must be one of the resources. `size` is its approximate number of bytes."""
        if self._waiting and (process != self._process or self._bytes + size > _MOST_BYTES):
            self._encode()
        if self._bytes + size > _MOST_BYTES or self._records >= _MOST_RECORDS:
            self.flush()
        self._process = process
        self._waiting.append(record)
        self._records += 1
        self._bytes += size

    def flush(self) -> None:
        """Send what was added."""
        self._encode()
        if self._parts:
            parts, records = self._parts, self._records
            self._parts, self._records, self._bytes = [], 0, 0
            self._sender.send("logs", b"".join(parts), records)

    def _encode(self) -> None:
        """Encode the waiting records, which belong to one process. Protobuf messages can be concatenated."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            resource = self._resources[self._process]
            try:
                self._parts.append(encode_events(resource, waiting, derive_severity=self._derive_severity))
            except INVALID as error:
                if len(waiting) == 1:
                    name = waiting[0].name or "log line"
                    self._report(f"{name} of process {self._process}: cannot send it ({error})")
                    self._records -= 1
                    return
                for record in waiting:
                    self._waiting = [record]
                    self._encode()
