"""Metric summaries in the SQLite file."""

import sqlite3

from tensormeter.server.store.rules.totals import Totals

__all__ = ["add_totals"]

_LATER = "excluded.last_time > last_time"


def add_totals(connection: sqlite3.Connection, run: int, metric: str, totals: Totals) -> None:
    """Merge totals into a stored summary inside the caller's transaction."""
    connection.execute(
        "INSERT INTO summary (run, metric, count, numbers, total, minimum, maximum, last_time, last_word, last_integer, last_step)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " count = count + excluded.count,"
        " total = CASE WHEN numbers = 0 THEN excluded.total WHEN excluded.numbers = 0 THEN total"
        " ELSE total + excluded.total END,"
        " numbers = numbers + excluded.numbers,"
        " minimum = min(ifnull(minimum, excluded.minimum), ifnull(excluded.minimum, minimum)),"
        " maximum = max(ifnull(maximum, excluded.maximum), ifnull(excluded.maximum, maximum)),"
        + ", ".join(
            f" {name} = CASE WHEN {_LATER} THEN excluded.{name} ELSE {name} END"
            for name in ("last_word", "last_integer", "last_step", "last_time")
        ),
        (
            run,
            metric,
            totals.count,
            totals.numbers,
            totals.total,  # SQLite stores NaN as NULL
            totals.minimum,
            totals.maximum,
            totals.last_time,
            totals.last_word,
            totals.last_integer,
            totals.last_step,
        ),
    )
