"""Insertion of a request's sources, series and events inside the request's transaction."""

import sqlite3
from collections.abc import Mapping, Sequence

from tensormeter.conventions.semconv import RUN_START
from tensormeter.otlp.batch import Attribute, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.rules.events import refusal, trim_config
from tensormeter.server.store.rules.ingest_blocks import BlockArrival
from tensormeter.server.store.rules.ingest_lines import LineArrival
from tensormeter.server.store.rules.ingest_series import Arrival, Rejections
from tensormeter.server.store.rules.limits import DELETED
from tensormeter.server.store.rules.log_lines import LogLimit, is_line
from tensormeter.server.store.rules.resource_identity import Source, identify
from tensormeter.server.store.sqlite.points.memtable import LocatedNumbers, SeriesPoints, located_numbers
from tensormeter.server.store.sqlite.tables.catalog import Catalog
from tensormeter.server.store.sqlite.tables.events import insert_event
from tensormeter.server.store.sqlite.tables.log_lines import insert_lines
from tensormeter.server.store.sqlite.tables.run_state import refresh_run

__all__ = ["insert_events", "insert_line_arrival", "locate_arrivals"]


def locate_arrivals(
    catalog: Catalog,
    arrivals: Sequence[Arrival],
    received: int,
    rejections: Rejections,
    check: Check = no_check,
    blocks: Sequence[BlockArrival] = (),
) -> tuple[list[SeriesPoints], list[LocatedNumbers]]:
    """Find or create the runs, processes and series of arrivals, and count refused points in `rejections`.

    The caller's transaction must be rolled back if `check` raises.
    """
    spans: dict[Source, tuple[int, int]] = {}
    everything: list[Arrival | BlockArrival] = [*arrivals, *blocks]
    for item in everything:
        first, last = item.span
        span_before = spans.get(item.source)
        spans[item.source] = (
            (first, last) if span_before is None else (min(span_before[0], first), max(span_before[1], last))
        )
    rows = {}
    for source, span in spans.items():
        check()
        rows[source] = catalog.process(source, span, received)
    located: list[SeriesPoints] = []
    for arrival in arrivals:
        check()
        row = rows[arrival.source]
        if row is None:
            rejections[DELETED] += len(arrival.points)
            continue
        series = catalog.series(*row, arrival)
        if isinstance(series, str):
            rejections[series] += len(arrival.points)
        else:
            located.append(SeriesPoints(*row, series, arrival.metric, arrival.points))
    numbers: list[LocatedNumbers] = []
    for block_arrival in blocks:
        check()
        row = rows[block_arrival.source]
        if row is None:
            rejections[DELETED] += len(block_arrival.block.times)
            continue
        numbers += located_numbers(row[0], block_arrival, catalog.block_series(*row, block_arrival, rejections, check))
    return located, numbers


def insert_events(
    connection: sqlite3.Connection,
    catalog: Catalog,
    resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
    received: int,
    rejections: Rejections,
    *,
    check: Check = no_check,
) -> None:
    """Store events, and count refused ones in `rejections`. Log lines are left out.

    The caller's transaction must be rolled back if `check` raises.
    """
    changed: set[int] = set()
    for attributes, records in resources:
        check()
        events = [record for record in records if not is_line(record)]
        source = identify(attributes)
        if isinstance(source, str):
            if events:
                rejections[source] += len(events)
            continue
        for event in events:
            check()
            moment = event.time or received  # OTLP allows log records without a time
            reason = refusal(event, moment)
            if reason is None:
                starts = event.name == RUN_START
                rows = catalog.process(source, (moment, moment), received, starts=starts, points=False)
                trimmed, trim_reason = trim_config(event)
                if trim_reason is not None:
                    rejections[trim_reason] += 1
                if rows is None:
                    reason = DELETED
                else:
                    reason = insert_event(connection, *rows, trimmed, moment, changed=changed, first=source.first)
            if reason is not None:
                rejections[reason] += 1
    for run in changed:
        check()
        refresh_run(connection, run)


def insert_line_arrival(
    connection: sqlite3.Connection,
    catalog: Catalog,
    arrival: LineArrival,
    received: int,
    limit: LogLimit,
    rejections: Rejections,
) -> None:
    """Store log lines, and count those of a deleted run in `rejections`.

    Args:
        connection: Connection with a transaction.
        catalog: Catalog of the store.
        arrival: Lines of one process.
        received: Current time, in nanoseconds since the Unix epoch.
        limit: Maximum number and size of a run's lines.
        rejections: Counts of refused records by reason.
    """
    rows = catalog.process(arrival.source, arrival.span, received, points=False)
    if rows is None:
        rejections[DELETED] += len(arrival.lines)
    else:
        insert_lines(connection, *rows, arrival.lines, limit)
