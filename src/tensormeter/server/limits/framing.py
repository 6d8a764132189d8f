"""Bodies in many small pieces: each piece costs the event loop some 40 microseconds, however few bytes it has."""

from typing import Any, Final

import h11

__all__ = ["BoundedConnection"]

_PIECES: Final = 20_000
"""Pieces of one body that are taken whatever their size."""

_PIECE_BYTES: Final = 1024
"""Average bytes of the pieces beyond those: a packet of any network has more."""


class BoundedConnection(h11.Connection):
    """h11's state machine with a bound on the pieces (chunks, or reads of the socket) in which a body may come."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pieces = 0
        self._bytes = 0

    def next_event(self) -> Any:
        """See `h11.Connection.next_event`; a body in too many small pieces is an error of the client's."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > _PIECES + self._bytes // _PIECE_BYTES:
                raise h11.RemoteProtocolError("the body comes in too many small pieces")
        elif isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        return event
