"""Position up to which a lane of a ring has been read."""

from dataclasses import dataclass

__all__ = ["Cursor"]


@dataclass(frozen=True)
class Cursor:
    """Position up to which a lane has been read.

    Attributes:
        position: Bytes read so far, counted over all laps of the lane.
        last_time: Time of the last row in nanoseconds, after times were made unique.
    """

    position: int = 0
    last_time: int = 0
