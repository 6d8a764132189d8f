"""Folding: from heads in memory to chunks in the file.

A series grows by the logarithmic method: points are folded into a new chunk, and the youngest chunks join it for as
long as they hold no more points than it does.
So a series has few small chunks, each point is rewritten a logarithmic number of times, and a chunk once full is never
touched again.

Chunks of a series never share a time: what is folded leaves out the times that its chunks have already.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tensormeter.server.store import journal
from tensormeter.server.store.chunks import Chunk, encode_chunk, full_chunk
from tensormeter.server.store.heads import HeadView, Layer, Newest, newest
from tensormeter.server.store.points import Column, Points
from tensormeter.server.store.reader import chunk_points, chunks
from tensormeter.server.store.steps import StepFinder
from tensormeter.server.store.summary import Totals, add_totals

__all__ = ["Fold", "apply_folds", "filled", "plan_folds"]


@dataclass(frozen=True)
class Fold:
    """What folding changes in one series.

    Attributes:
        first: Order number of the first new chunk; old chunks from there on are replaced.
        chunks: The new chunks.
        added: Points that were in no chunk before.
        newest: The latest of them.
        last_step: The step logged at its time, if any.
        totals: Of them, if they are numbers.
    """

    series: int
    run: int
    metric: str
    first: int
    chunks: Sequence[Chunk]
    added: int
    newest: Newest
    last_step: int | None
    totals: Totals | None


def plan_folds(connection: sqlite3.Connection, layer: Layer, give_way: Callable[[], None]) -> list[Fold]:
    """Read what is needed and encode what is to be written; writes nothing.

    Args:
        give_way: Called before each series.
    """
    steps = StepFinder(connection, [layer])
    folds = []
    for series, head in layer.series.items():
        give_way()
        fold = _plan(connection, steps, series, head)
        if fold is not None:
            folds.append(fold)
    return folds


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
        "UPDATE series SET last_time = ?, last_word = ?, last_integer = ?, last_step = ?"
        " WHERE id = ? AND ifnull(last_time, 0) < ?",
        [(*fold.newest, fold.last_step, fold.series, fold.newest[0]) for fold in folds],
    )
    added: Counter[int] = Counter()
    totals: dict[tuple[int, str], list[Totals]] = defaultdict(list)
    for fold in folds:
        added[fold.run] += fold.added
        if fold.totals is not None:
            totals[fold.run, fold.metric].append(fold.totals)
    connection.executemany("UPDATE run SET points = points + ? WHERE id = ?", [(n, run) for run, n in added.items()])
    for (run, metric), parts in totals.items():
        add_totals(connection, run, metric, Totals.merge(parts))
    journal.retire(connection, upto)


def filled(folds: Sequence[Fold]) -> list[tuple[int, int]]:
    """(series, order number) of the full chunks of numbers that folds have made."""
    return [(fold.series, fold.first + i) for fold in folds for i, chunk in enumerate(fold.chunks) if chunk.is_full]


def _plan(connection: sqlite3.Connection, steps: StepFinder, series: int, head: HeadView) -> Fold | None:
    points = type(head.parts[0]).concat(head.parts).distinct()
    start, stop = int(points.times[0]), int(points.times[-1]) + 1
    for chunk in chunks(connection, series, start, stop):
        points = points[~np.isin(points.times, chunk_points(chunk).times)]
    if not len(points):
        return None
    added, latest = len(points), newest(points)
    step = steps.at(head.process, latest[0])
    totals = Totals.of(points, step) if isinstance(points, Points) else None
    first, pieces = _merge(connection, series, points)
    return Fold(series, head.run, head.metric, first, pieces, added, latest, step, totals)


def _merge(connection: sqlite3.Connection, series: int, points: Column) -> tuple[int, list[Chunk]]:
    """New chunks out of points and the youngest chunks, and the order number of the first."""
    tail = connection.execute(
        "SELECT seq, n FROM chunk WHERE series = ? ORDER BY seq DESC LIMIT 64", (series,)
    ).fetchall()
    full = full_chunk(points)
    first = tail[0][0] + 1 if tail else 0
    merged = len(points)
    for seq, n in tail:
        if n > merged or n >= full:
            break
        first, merged = seq, merged + n
    if merged > len(points):
        rows = connection.execute(
            "SELECT n, t_min, t_max, kind, times, words, integers FROM chunk"
            " WHERE series = ? AND seq >= ? ORDER BY seq",
            (series, first),
        )
        points = type(points).concat([*(chunk_points(Chunk(*row)) for row in rows), points]).distinct()
    return first, [encode_chunk(points[i : i + full]) for i in range(0, len(points), full)]
