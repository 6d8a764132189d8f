"""Cursors of the SQLite store."""

from dataclasses import dataclass
from typing import Self

__all__ = ["Cursor"]

_UNKNOWN = -1


@dataclass(frozen=True)
class Cursor:
    """How far somebody has read: the last journal row and the last event. As text it means nothing to others."""

    seq: int
    event: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`. What is not a cursor of ours, or is from another store, counts as unknown."""
        seq, _, event = text.partition(".")
        if not (seq.isascii() and seq.isdecimal() and event.isascii() and event.isdecimal() and len(text) < 40):
            return cls(_UNKNOWN, 0)
        return cls(int(seq), min(int(event), (1 << 63) - 1))

    def __str__(self) -> str:
        return f"{self.seq}.{self.event}"
