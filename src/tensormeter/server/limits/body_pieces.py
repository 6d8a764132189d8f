"""A limit on the number of small pieces in a body.

Each piece, however small, takes the event loop about 40 microseconds.
"""

from typing import Any, Final

import h11

__all__ = ["BoundedConnection"]

_PIECES: Final = 20_000
"""Number of pieces of a body that may have any size."""

_PIECE_BYTES: Final = 1024
"""Minimum average size, in bytes, of all further pieces. Network packets are larger."""


class BoundedConnection(h11.Connection):
    """h11's state machine with a limit on the number of pieces (chunks or socket reads) per body."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pieces = 0
        self._bytes = 0

    def next_event(self) -> Any:
        """See `h11.Connection.next_event`. A body with too many small pieces is a client error."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > _PIECES + self._bytes // _PIECE_BYTES:
                raise h11.RemoteProtocolError("the body has too many small pieces; send larger chunks")
        elif isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        return event
