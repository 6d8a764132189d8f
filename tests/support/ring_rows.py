"""A second, slow and simple reader of ring files, which tests compare with what was logged."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import (
    ITEMS,
    ITEMS_UNSTEPPED,
    LANE_HEADER_BYTES,
    LAYOUT_BITS,
    SKIP,
    WRAP,
    EntryKind,
    LaneWord,
)
from tensormeter.ring.layout import Layout, Stream

__all__ = ["PlainRow", "plain_rows"]


class PlainRow(NamedTuple):
    """A row: the lane's index, the row's layout number, step and numbers by name."""

    lane: int
    layout: int
    step: int
    values: dict[str, float | int]


def plain_rows(path: Path) -> list[PlainRow]:
    """The rows of numbers that no agent has read yet."""
    ring = RingFile.open(path)
    streams: dict[int, Stream] = {}
    layouts: dict[int, Layout] = {}
    for kind, entry in ring.entries():
        if kind is EntryKind.STREAMS:
            streams.update(enumerate(map(Stream.from_entry, entry["streams"]), entry["first"]))
        elif kind is EntryKind.LAYOUT:
            layouts[entry["id"]] = Layout.from_json(entry, streams)
    return [row for lane in range(len(ring.lanes)) for row in _rows_of(ring, lane, streams, layouts)]


def _rows_of(ring: RingFile, lane: int, streams: dict[int, Stream], layouts: dict[int, Layout]) -> Iterator[PlainRow]:
    header, size = ring.lanes[lane]
    words, position = ring.words, ring.words[(header >> 3) + LaneWord.TAIL]
    while True:
        at = (header + LANE_HEADER_BYTES + position % size) >> 3
        mark = words[at]
        number = mark & ((1 << LAYOUT_BITS) - 1)
        if mark >> LAYOUT_BITS != position >> 3 or number == 0:
            return
        if number == WRAP:
            position += size - position % size
            continue
        if number == SKIP:
            position += words[at + 1]
            continue
        if number in (ITEMS, ITEMS_UNSTEPPED):
            count, body = words[at + 3] >> 32, words[at + 3] & 0xFFFFFFFF
            heads = words[at + 4 : at + 4 + count].tolist()
            start, total = at + 4 + count, 5 + count + body
            assert all(head >> 8 & 0xFFFFFF == 1 for head in heads)
            columns = [(streams[head >> 32].name, chr(head & 0xFF)) for head in heads]
        else:
            layout = layouts[number]
            start, total = at + 3, 4 + len(layout.columns)
            columns = list(zip(layout.names, layout.codes, strict=True))
        if words[at + total - 1] != mark:
            return
        cells = words[start : start + len(columns)].tolist()
        values = {
            name: struct.unpack("<d", struct.pack("<q", cell))[0] if code == "d" else cell
            for (name, code), cell in zip(columns, cells, strict=True)
        }
        yield PlainRow(lane, number, words[at + 2], values)
        position += 8 * total
