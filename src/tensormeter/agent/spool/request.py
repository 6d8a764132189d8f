"""Requests as the spool holds them: encoded, with what they are worth and a checksum."""

import enum
import zlib
from dataclasses import dataclass
from typing import get_args

from tensormeter.exporter import Signal

__all__ = ["Encoded", "Priority", "checksum", "intact", "seal"]


class Priority(enum.IntEnum):
    """What a request is worth when there is no room for all. The lowest goes first, ESSENTIAL never."""

    SYSTEM = 0
    """Statistics of host and GPU, heartbeats."""
    MEDIA = 1
    """Images, tables, and the like."""
    SCALARS = 2
    """What was logged. It is thinned, and the last value of each series stays."""
    ESSENTIAL = 3
    """Configuration, and how a run began and ended."""


@dataclass(frozen=True)
class Encoded:
    """A request that has no place in the spool yet: see `Request` for the fields.

    Attributes:
        priority: SCALARS for metrics and ESSENTIAL for logs, if None.
    """

    signal: Signal
    body: bytes
    items: int
    priority: Priority | None = None


def checksum(batch: str, signal: str, items: int, body: bytes) -> int:
    """Of everything about a request that its receiver will see."""
    return zlib.crc32(body, zlib.crc32(f"{batch} {signal} {items}".encode()))


def intact(batch: object, signal: object, items: object, body: object, expected: object) -> bool:
    """Whether what came out of the database is what was put into it; with flipped bits it may be of another type."""
    return (
        isinstance(batch, str)
        and isinstance(signal, str)
        and signal in get_args(Signal)
        and isinstance(items, int)
        and isinstance(body, bytes)
        and checksum(batch, signal, items, body) == expected
    )


def seal(*values: str | int) -> int:
    """The checksum of a row in the spool's small tables, over all its other columns."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))
