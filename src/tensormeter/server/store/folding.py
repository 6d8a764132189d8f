"""Folding: from heads in memory to chunks in the file.

A series grows by the logarithmic method: points are folded into a new chunk, and the youngest chunks join it for as
long as they hold no more points than it does.
So a series has few small chunks, each point is rewritten a logarithmic number of times, and a chunk once full is never
touched again.

Chunks of a series never share a time: what is folded leaves out the times that its chunks have already.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tensormeter.server.store import journal
from tensormeter.server.store.chunks import CHUNK_POINTS, Chunk, decode_chunk, encode_chunk
from tensormeter.server.store.heads import HeadView, Layer, Newest, newest
from tensormeter.server.store.points import Points
from tensormeter.server.store.reader import chunks

__all__ = ["Fold", "apply_folds", "plan_folds"]


@dataclass(frozen=True)
class Fold:
    """What folding changes in one series.

    Attributes:
        first: Order number of the first new chunk; old chunks from there on are replaced.
        chunks: The new chunks.
        added: Points that were in no chunk before.
        newest: The latest of them.
    """

    series: int
    run: int
    first: int
    chunks: Sequence[Chunk]
    added: int
    newest: Newest


def plan_folds(connection: sqlite3.Connection, layer: Layer) -> list[Fold]:
    """Read what is needed and encode what is to be written; writes nothing."""
    folds = (_plan(connection, series, head) for series, head in layer.series.items())
    return [fold for fold in folds if fold is not None]


def apply_folds(connection: sqlite3.Connection, folds: Sequence[Fold], upto: int) -> None:
    """Write folds and retire the journal rows that they came from; inside the caller's transaction."""
    connection.executemany("DELETE FROM chunk WHERE series = ? AND seq >= ?", [(f.series, f.first) for f in folds])
    connection.executemany(
        "INSERT INTO chunk (series, seq, n, t_min, t_max, kind, times, words, integers)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (f.series, f.first + i, c.n, c.t_min, c.t_max, c.kind, c.times, c.words, c.integers)
            for f in folds
            for i, c in enumerate(f.chunks)
        ],
    )
    connection.executemany(
        "UPDATE series SET points = points + ? WHERE id = ?",
        [(fold.added, fold.series) for fold in folds],
    )
    connection.executemany(
        "UPDATE series SET last_time = ?, last_word = ?, last_integer = ? WHERE id = ? AND ifnull(last_time, 0) < ?",
        [(*fold.newest, fold.series, fold.newest[0]) for fold in folds],
    )
    added: Counter[int] = Counter()
    for fold in folds:
        added[fold.run] += fold.added
    connection.executemany("UPDATE run SET points = points + ? WHERE id = ?", [(n, run) for run, n in added.items()])
    journal.retire(connection, upto)


def _plan(connection: sqlite3.Connection, series: int, head: HeadView) -> Fold | None:
    points = Points.concat(head.parts).distinct()
    start, stop = int(points.times[0]), int(points.times[-1]) + 1
    for chunk in chunks(connection, series, start, stop):
        points = points[~np.isin(points.times, decode_chunk(chunk).times)]
    if not len(points):
        return None
    added, latest = len(points), newest(points)
    tail = connection.execute(
        "SELECT seq, n FROM chunk WHERE series = ? ORDER BY seq DESC LIMIT 64", (series,)
    ).fetchall()
    first = tail[0][0] + 1 if tail else 0
    merged = added
    for seq, n in tail:
        if n > merged or n >= CHUNK_POINTS:
            break
        first, merged = seq, merged + n
    if merged > added:
        rows = connection.execute(
            "SELECT n, t_min, t_max, kind, times, words, integers FROM chunk"
            " WHERE series = ? AND seq >= ? ORDER BY seq",
            (series, first),
        )
        points = Points.concat([*(decode_chunk(Chunk(*row)) for row in rows), points]).distinct()
    pieces = [encode_chunk(points[i : i + CHUNK_POINTS]) for i in range(0, len(points), CHUNK_POINTS)]
    return Fold(series, head.run, first, pieces, added, latest)
