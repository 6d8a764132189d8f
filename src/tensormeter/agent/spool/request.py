"""Requests in the form in which the spool stores them: encoded, with a priority and a checksum."""

import enum
import zlib
from dataclasses import dataclass
from typing import get_args

from tensormeter.exporter import Signal

__all__ = ["Encoded", "Priority", "checksum", "intact", "seal"]


class Priority(enum.IntEnum):
    """Priority of a request in a full spool. Low priorities are evicted first. The numbers are part of the spool's format.

    ESSENTIAL requests are never evicted while they are waiting for delivery.
    """

    OUTPUT = -1
    """Console output and log records of the program."""
    SYSTEM = 0
    """Host and GPU statistics, and heartbeats."""
    MEDIA = 1
    """Images, tables and similar data."""
    SCALARS = 2
    """Logged values. A full spool thins them, but keeps the last value of each series."""
    ESSENTIAL = 3
    """Configuration, and the start and end of a run."""


@dataclass(frozen=True)
class Encoded:
    """A request that is not yet in the spool. Its other fields are those of `Request`.

    Attributes:
        priority: Priority of the request. None means SCALARS for metrics and ESSENTIAL for logs.
    """

    signal: Signal
    body: bytes
    items: int
    priority: Priority | None = None


def checksum(batch: str, signal: str, items: int, body: bytes) -> int:
    """Return a checksum over all parts of a request that its receiver sees."""
    return zlib.crc32(body, zlib.crc32(f"{batch} {signal} {items}".encode()))


def intact(batch: object, signal: object, items: object, body: object, expected: object) -> bool:
    """Return whether database columns match their checksum. Flipped bits may have changed their types, too."""
    return (
        isinstance(batch, str)
        and isinstance(signal, str)
        and signal in get_args(Signal)
        and isinstance(items, int)
        and isinstance(body, bytes)
        and checksum(batch, signal, items, body) == expected
    )


def seal(*values: str | int) -> int:
    """Return the checksum of a row in one of the spool's small tables, given its other columns."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))
