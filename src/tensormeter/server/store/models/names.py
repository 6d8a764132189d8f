"""A compact, sorted table of metric names."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["DISTRIBUTION", "NUMBER", "FieldKind", "NameTable"]

FieldKind = Literal["config", "summary"]

NUMBER: Final = 1
"""Bit of a name that gauges or sums have."""

DISTRIBUTION: Final = 2
"""Bit of a name that distributions have."""

_END: Final = b"\xff"
"""Byte that ends a name. UTF-8 does not contain it, and it is greater than all bytes of UTF-8."""


@dataclass(frozen=True, eq=False)
class NameTable(Sequence[bytes]):
    """Distinct names as UTF-8, in ascending order. A name takes its length and 10 bytes.

    Attributes:
        block: The names, each followed by a byte 0xff.
        ends: int64, shape (n,): position of the byte after each name in `block`.
        kinds: uint8, shape (n,): which of the bits `NUMBER` and `DISTRIBUTION` apply to each name.
        digest: Digest of names and kinds. Equal tables have equal digests.
    """

    block: bytes = field(repr=False)
    ends: NDArray[np.int64] = field(repr=False)
    kinds: NDArray[np.uint8] = field(repr=False)
    digest: bytes

    @classmethod
    def of(cls, numbers: Iterable[bytes], distributions: Iterable[bytes] = ()) -> "NameTable":
        """Create a table of names as UTF-8, in any order and with repetitions."""
        numeric, distributed = set(numbers), set(distributions)
        names = sorted(numeric | distributed)
        kinds = np.full(len(names), NUMBER, np.uint8)
        if distributed:
            bits = ((name in numeric) * NUMBER + (name in distributed) * DISTRIBUTION for name in names)
            kinds = np.fromiter(bits, np.uint8, len(names))
        return cls.sorted(names, kinds)

    @classmethod
    def of_lines(cls, lines: bytes, kind: int) -> "NameTable":
        """Create a table of names of one kind from distinct lines in ascending order, separated by line feeds."""
        block = lines.replace(b"\n", _END) + _END
        return cls._of_block(block, np.full(block.count(_END), kind, np.uint8))

    @classmethod
    def sorted(cls, names: Sequence[bytes], kinds: NDArray[np.uint8]) -> "NameTable":
        """Create a table of distinct names in ascending order."""
        return cls._of_block(_END.join([*names, b""]), kinds)

    @classmethod
    def _of_block(cls, block: bytes, kinds: NDArray[np.uint8]) -> "NameTable":
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _END[0])
        digest = blake2b(kinds.tobytes(), key=blake2b(block).digest(), digest_size=16).digest()
        return cls(block, ends, kinds, digest)

    @classmethod
    def union(cls, tables: Sequence["NameTable"]) -> "NameTable":
        """Return the names of several tables."""
        distinct = [*{table.digest: table for table in tables}.values()]
        if len(distinct) == 1:
            return distinct[0]
        largest = max(distinct, key=len)
        others = [table for table in distinct if table is not largest]
        if 4 * sum(map(len, others)) < len(largest):
            kinds: dict[bytes, int] = {}
            for table in others:
                for name, kind in zip(table.names(), table.kinds.tolist(), strict=True):
                    kinds[name] = kinds.get(name, 0) | kind
            return largest.add(kinds)
        parts: list[set[bytes]] = [set(), set()]
        for table in distinct:
            names = table.names()
            for part, bit in zip(parts, (NUMBER, DISTRIBUTION), strict=True):
                if (table.kinds & bit).all():
                    part.update(names)
                else:
                    part.update(names[row] for row in np.flatnonzero(table.kinds & bit).tolist())
        return cls.of(*parts)

    def prefixed(self, prefix: bytes, kind: int) -> "NameTable":
        """Return the names of one kind, with a text added before each name."""
        if not (self.kinds & kind).all():
            names = self.names()
            return NameTable.sorted(
                [prefix + names[row] for row in np.flatnonzero(self.kinds & kind).tolist()],
                np.full(np.count_nonzero(self.kinds & kind), kind, np.uint8),
            )
        block = (prefix + self.block.replace(_END, _END + prefix))[: -len(prefix)] if len(self) else b""
        return NameTable._of_block(block, np.full(len(self), kind, np.uint8))

    def add(self, kinds: Mapping[bytes, int]) -> "NameTable":
        """Return a table that also contains other names.

        Args:
            kinds: Bits (`NUMBER`, `DISTRIBUTION`) by name. Names that the table contains get additional bits.
        """
        rows = {name: self.row_of(name) for name in kinds}
        known = [name for name, row in rows.items() if row < len(self) and self[row] == name]
        new = sorted(kinds.keys() - known)
        bits = self.kinds.copy()
        for name in known:
            bits[rows[name]] |= kinds[name]
        pieces: list[bytes] = []
        position = 0
        for name in new:
            start = self.start(rows[name])
            pieces += (self.block[position:start], name + _END)
            position = start
        block = b"".join([*pieces, self.block[position:]])
        bits = np.insert(bits, [rows[name] for name in new], [kinds[name] for name in new])
        return NameTable._of_block(block, bits)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> bytes:  # type: ignore[override]
        if row >= len(self.ends):
            raise IndexError(row)
        return self.block[self.start(row) : self.ends[row]]

    def __contains__(self, name: object) -> bool:
        row = bisect_left(self, name) if isinstance(name, bytes) else len(self)
        return row < len(self) and self[row] == name

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return len(self.block) + self.ends.nbytes + self.kinds.nbytes

    def start(self, row: int) -> int:
        """Return the position of a name in `block`."""
        return int(self.ends[row - 1]) + 1 if row else 0

    def names(self) -> list[bytes]:
        """Return all names."""
        return self.block.split(_END)[:-1]

    def starts_with(self, row: int, prefix: bytes) -> bool:
        """Return whether a name starts with `prefix`."""
        return self.block.startswith(prefix, self.start(row))

    def row_of(self, name: bytes) -> int:
        """Return the row of the first name that is not less than `name`; the number of rows if there is none."""
        return bisect_left(self, name)

    def below(self, prefix: bytes) -> tuple[int, int]:
        """Return the first row whose name starts with `prefix`, and the row after the last one."""
        first = bisect_left(self, prefix)
        return first, bisect_left(self, prefix + _END, first) if prefix else len(self)
