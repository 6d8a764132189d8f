"""Inspection of a whole store, including every checksum, blob and reference, and SQLite's own structures.

An inspection only reads, a few rows at a time, so that a server can meanwhile use the file and shorten its write-ahead
log.
"""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from tensormeter.conventions.media_types import is_of_type
from tensormeter.errors import EncodingError, StoreError
from tensormeter.otlp.number_blocks import decode_blocks
from tensormeter.server.store.models.errors import DamagedError, StoreUnavailableError, SuspectedDamageError
from tensormeter.server.store.models.rollup_blocks import Blocks
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.integrity.damage import name_series
from tensormeter.server.store.sqlite.integrity.file_header import header_fault, version_of_tables
from tensormeter.server.store.sqlite.integrity.seals import KEYS, ROW_SEALS, RowSeal, is_sound
from tensormeter.server.store.sqlite.points import rollups
from tensormeter.server.store.sqlite.points.bundles import BUNDLE_COLUMNS, Heads, parse_bundle, read_bundles
from tensormeter.server.store.sqlite.points.segment_rows import SEGMENT_COLUMNS, Span, parse_segment, spans
from tensormeter.server.store.sqlite.points.segments import decompress_words, segment_points
from tensormeter.server.store.sqlite.schema import SCHEMA, SCHEMA_VERSION, holder_of
from tensormeter.server.store.sqlite.tables.events import SEALED
from tensormeter.server.store.sqlite.tables.log_lines import SEALED as LINE_SEALED
from tensormeter.server.store.sqlite.tables.log_lines import USAGE as LINE_USAGE
from tensormeter.server.store.sqlite.transaction import CHANGED, describe, may_be_damage, primary_code, reading

__all__ = ["SMALL", "Finding", "Inspection", "open_read_only"]

_FEW: Final = 8
"""Number of rows to read at once if they have large blobs."""

_MANY: Final = 500
"""Number of rows to read at once otherwise."""

SMALL: Final = 1 << 30
"""Maximum file size in bytes for a complete check by SQLite while the file is in use. The check is one long read."""

_CATALOG: Final = ("run", "process", "series", "summary", "first_step", "result", "batch", "tombstone", "mark", "gap")
"""Tables that are small compared to the rest of the file."""

_COMPLETE: Final = FileSystem()
_MOST_PROBLEMS: Final = 100
_JSON: Final = {
    "run": ("config", "tags"),
    "process": ("losses",),
    "series": ("attributes",),
    "result": ("summary", "definitions", "parent"),
}
_LAST: Final = (1 << 63) - 1


@dataclass(frozen=True)
class Finding:
    """A damaged part of a store.

    Attributes:
        what: Description of the damaged part and its damage.
        about: Human-readable name of the damaged run or series; "" if unknown.
    """

    what: str
    about: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.what}" if self.about else self.what


class _DamagedRowError(Exception):
    """A row is damaged. The message contains the reason."""


def open_read_only(file: Path, filesystem: FileSystem = _COMPLETE) -> sqlite3.Connection:
    """Open a read-only connection.

    Args:
        file: Path of the database.
        filesystem: Capabilities of the database's file system.

    Raises:
        StoreUnavailableError: The file cannot currently be read.
        DamagedError: The file is too damaged for an inspection.
        StoreError: The file is not a store of this version.
    """
    connection = None
    try:
        connection = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=filesystem.patience,
            isolation_level=None,
            check_same_thread=False,
        )
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        try:
            tables = version_of_tables(connection, SCHEMA)
        except (sqlite3.Error, *CHANGED) as error:
            if not _is_damage(error):
                raise
            return connection  # the inspection will report the damage
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        kind = (
            StoreUnavailableError if isinstance(error, sqlite3.OperationalError) or may_be_damage(error) else StoreError
        )
        raise kind(f"cannot open the store {file}: {error}{holder_of(file, error)}") from error
    if SCHEMA_VERSION not in (version, tables):
        connection.close()
        if tables is not None and tables != version:
            raise DamagedError(f"{file}: its header has schema {version}, but its tables are of schema {tables}")
        raise StoreError(
            f"{file} has schema {version}, and this tensormeter checks schema {SCHEMA_VERSION}; "
            "start the server once to bring an older store up to date, or upgrade tensormeter for a newer one"
        )
    return connection


class Inspection:
    """An inspection of a store, for use by one thread.

    Attributes:
        counts: Number of inspected rows, by table.
        unsealed: Number of rows without a checksum, by table. Older versions wrote these rows.
    """

    def __init__(self, connection: sqlite3.Connection, yield_to_readers: Callable[[], None] = lambda: None) -> None:
        """Create an inspection.

        Args:
            connection: Connection to read with, in autocommit mode.
            yield_to_readers: Function called between two reads; it can raise an exception to stop the inspection.
        """
        self._connection = connection
        self._yield_to_readers = yield_to_readers
        self._is_readable = True
        self.counts: Counter[str] = Counter()
        self.unsealed: Counter[str] = Counter()

    def all(self, *, full: bool = False) -> Iterator[Finding]:
        """Inspect everything.

        Args:
            full: Whether to check SQLite's structures completely even if the file is large.

        Raises:
            StoreUnavailableError: The file cannot currently be read.
        """
        yield from self.structure(full=full)
        if self._is_readable:
            yield from self.catalog()
            yield from self.contents()

    def structure(self, *, full: bool = False, most: int = SMALL) -> Iterator[Finding]:
        """Run SQLite's integrity check on all tables, or only on catalog tables if the file is large.

        Args:
            full: Whether to check all tables regardless of the file's size.
            most: File size in bytes above which a file counts as large.
        """
        try:
            fault = header_fault(self._connection, SCHEMA)
        except (sqlite3.Error, *CHANGED) as error:
            if not _is_damage(error):
                raise StoreUnavailableError(f"cannot read the store: {error}") from error
            self._is_readable = False
            yield Finding(f"its tables cannot be read: {describe(error)}")
            return
        if fault is not None:
            yield Finding(fault)
        pages, size = (self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        tables: Sequence[str] = ("",) if full or pages * size <= most else [f"('{table}')" for table in _CATALOG]
        for table in tables:
            self._yield_to_readers()
            try:
                for (text,) in self._connection.execute(f"PRAGMA integrity_check{table}"):
                    if text != "ok":
                        yield Finding(f"SQLite's integrity check: {' '.join(str(text).split())}")
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise StoreUnavailableError(f"cannot read the store: {error}") from error
                yield Finding(f"SQLite's integrity check: {error}")

    def catalog(self) -> Iterator[Finding]:
        """Inspect the rows of runs, processes, series and summaries."""
        yield from self._parts(
            *(self._sealed(seal) for seal in ROW_SEALS),
            self._rows("series", "series.id", "series.id, points, process", self._check_series, count=False),
            self._rows("run", "run.id", "id, series", self._check_run, count=False),
        )

    def contents(self) -> Iterator[Finding]:
        """Inspect segments, rollups, gaps, events, log lines, media, batches and the commit log."""
        joined = "sample LEFT JOIN chunk ON chunk.id = sample.chunk"
        columns = ", ".join(f"sample.{name.strip()}" for name in rollups.ROLLUP_COLUMNS.split(","))
        yield from self._parts(
            self._rows("chunk", "chunk.id", f"id, {SEGMENT_COLUMNS}", self._check_segment, _FEW),
            self._rows("bundle", "bundle.id", f"id, {BUNDLE_COLUMNS}", self._check_bundle, _FEW),
            self._rows("bundle_group", "id", "id", self._check_group, count=False),
            self._rows(joined, "sample.chunk", f"{columns}, series, seq, n, t_min, t_max", self._check_rollup, 64),
            self._rows("gap", "id", "id, series, time, seq, seal", self._check_gap),
            self._rows("event", "id", f"id, {SEALED}, seal", self._check_event, 64),
            self._rows("log", "id", f"id, {LINE_SEALED}, seal", self._check_line),
            self._rows("log_usage", "run", f"{LINE_USAGE}, seal", self._check_usage, 1, count=False),
            self._rows("media", "rowid", "rowid, run, digest, content_type, data", self._check_media, 2),
            self._batches(),
            self._rows("journal", "seq", "seq, payload, seal", self._check_journal, _FEW),
            self._rows("damaged", "seq", "seq", self._check_quarantined),
        )

    def _parts(self, *parts: Iterator[Finding]) -> Iterator[Finding]:
        """Yield the findings of all parts. A failed part becomes a finding, unless the file is currently unreadable."""
        for part in parts:
            try:
                yield from part
            except (sqlite3.Error, StoreUnavailableError, *CHANGED) as error:
                cause = error.__cause__ if isinstance(error, StoreUnavailableError) else error
                if not _is_damage(cause):
                    if isinstance(error, StoreUnavailableError):
                        raise
                    raise StoreUnavailableError(f"cannot read the store: {error}") from error
                yield Finding(f"some rows cannot be read: {describe(cause or error)}")

    def _sealed(self, seal: RowSeal) -> Iterator[Finding]:
        texts = _JSON.get(seal.table, ())
        is_first = seal.seal == "seal"  # some tables have two seals per row, but each row counts once

        def check(row: Sequence[Any]) -> None:
            first_seal, values = row[1], row[2:]
            if is_first or first_seal is not None or values[-1] is not None:
                self._sound(seal.table, values[-1], *values[:-1])
            for column, value in zip(seal.columns, values, strict=False):
                if column in texts and value is not None:
                    _parse(value, column)

        if len(KEYS.get(seal.table, ())) > 1:
            yield from self._by_run(seal)
        else:
            key = f"{seal.table}.{KEYS.get(seal.table, ('id',))[0]}"
            columns = f"{key}, {seal.table}.seal, {seal.selection}"
            yield from self._rows(seal.table, key, columns, check, 64, count=is_first)

    def _by_run(self, seal: RowSeal) -> Iterator[Finding]:
        """Check the rows of a table that are identified by a run or process, and a metric."""
        of_run = "run = ?" if seal.columns[0] == "run" else "process IN (SELECT id FROM process WHERE run = ?)"
        runs = [row[0] for row in self._connection.execute("SELECT id FROM run")]
        for run in runs:
            self._yield_to_readers()
            with reading(self._connection):
                rows = self._connection.execute(
                    f"SELECT {seal.selection} FROM {seal.table} WHERE {of_run}", (run,)
                ).fetchall()
            for row in rows:
                self.counts[seal.table] += 1
                try:
                    self._sound(seal.table, row[-1], *row[:-1])
                except _DamagedRowError as error:
                    yield Finding(f"{seal.table}: {error}", f"metric {row[1]!r} of {self._name_run(run)}")

    def _batches(self) -> Iterator[Finding]:
        last = ""
        while True:
            self._yield_to_readers()
            try:
                rows = self._connection.execute(
                    "SELECT id, digest, rejected, message, seal FROM batch WHERE id > ? ORDER BY id LIMIT ?",
                    (last, _MANY),
                ).fetchall()
            except sqlite3.OperationalError as error:
                raise StoreUnavailableError(f"cannot read the store: {error}") from error
            except sqlite3.DatabaseError as error:
                yield Finding(f"batch: rows after {last!r} cannot be read: {error}")
                return
            for row in rows:
                self.counts["batch"] += 1
                try:
                    self._sound("batch", row[-1], *row[:-1])
                except _DamagedRowError as error:
                    yield Finding(f"batch {row[0]!r}: {error}")
            if not rows:
                return
            if rows[-1][0] <= last:
                yield Finding(f"batch: rows after {last!r} cannot be read: they are out of order")
                return
            last = rows[-1][0]

    def _rows(
        self,
        table: str,
        key: str,
        columns: str,
        check: Callable[[Sequence[Any]], None],
        most: int = _MANY,
        *,
        count: bool = True,
    ) -> Iterator[Finding]:
        """Check the rows of a table, a few at a time. The first column must be an integer key."""
        name = table.partition(" ")[0]
        last, step = -1, 0
        top = self._top(key, name)
        while last < top:
            self._yield_to_readers()
            try:
                with reading(self._connection):
                    rows = self._connection.execute(
                        f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?",
                        (last, 1 if step else most),
                    ).fetchall()
                    findings = [*self._check(name, rows, check, count=count)]
            except StoreError as error:
                if isinstance(error, StoreUnavailableError) and not isinstance(error, SuspectedDamageError):
                    raise
                if not step:
                    yield Finding(f"{name}: rows after {last} cannot be read: {error.__cause__ or error}")
                step = max(2 * step, 1)  # skip unreadable rows in increasingly large steps
                last += step
                continue
            yield from findings
            if not rows:
                return
            last = max(int(rows[-1][0]), last + 1)

    def _top(self, key: str, name: str) -> int:
        try:
            highest = self._connection.execute(f"SELECT max({key}) FROM {name}").fetchone()[0]
        except sqlite3.DatabaseError:
            return _LAST
        return highest if isinstance(highest, int) else -1

    def _check(
        self, table: str, rows: Iterable[Sequence[Any]], check: Callable[[Sequence[Any]], None], *, count: bool
    ) -> Iterator[Finding]:
        for row in rows:
            if count:
                self.counts[table] += 1
            try:
                check(row)
            except DamagedError as error:
                about = "" if error.series is None else name_series(self._connection, error.series)
                yield Finding(f"{error}", about or self._about(table, row))
            except (_DamagedRowError, *CHANGED) as error:
                yield Finding(f"{table} {row[0]}: {error}", self._about(table, row))

    def _about(self, table: str, row: Sequence[Any]) -> str:
        if table in ("run", "result", "log_usage"):
            return self._name_run(row[0])
        if table in ("event", "log", "media"):
            return self._name_run(row[1])
        if table == "process":
            return self._name(
                "SELECT run_id, project FROM process JOIN run ON run.id = process.run WHERE process.id = ?", row[0]
            )
        if table in ("series", "chunk", "gap"):
            return name_series(self._connection, row[0] if table == "series" else row[1])
        return ""

    def _name_run(self, run: object) -> str:
        return self._name("SELECT run_id, project FROM run WHERE id = ?", run)

    def _name(self, query: str, key: object) -> str:
        try:
            row = self._connection.execute(query, (key,)).fetchone()
        except sqlite3.Error:
            row = None
        return "" if row is None else f"run {str(row[0])[:200]!r} (project {str(row[1])[:200]!r})"

    def _sound(self, table: str, seal: object, *values: Any) -> None:
        if seal is None:
            self.unsealed[table] += 1
        elif not is_sound(seal, *values):
            raise _DamagedRowError("the checksum does not match")

    def _check_run(self, row: Sequence[Any]) -> None:
        run, counted = row
        (count,) = self._connection.execute(
            "SELECT count(*) FROM process JOIN series ON series.process = process.id WHERE run = ?", (run,)
        ).fetchone()
        deleted = self._connection.execute("SELECT deleted FROM run WHERE id = ?", (run,)).fetchone()
        if count != counted and deleted is not None and not deleted[0]:
            raise _DamagedRowError(f"expected {counted} series, found {count}")

    def _check_series(self, row: Sequence[Any]) -> None:
        series, points, process = row
        segments = spans(self._connection, series)
        total = sum(span.n for span in segments)
        if total != points:
            raise _DamagedRowError(f"expected {points} points in segments, found {total}")
        if self._connection.execute("SELECT 1 FROM process WHERE id = ?", (process,)).fetchone() is None:
            raise _DamagedRowError(f"its process {process} is missing")

    def _check_segment(self, row: Sequence[Any]) -> None:
        if row[-1] is None:
            self.unsealed["chunk"] += 1
        segment = parse_segment(row[1:])
        points = segment_points(segment)
        times = points.times
        if len(times) != segment.n or times[0] != segment.t_min or np.any(times[1:] <= times[:-1]):
            raise _DamagedRowError("its times are not in order")
        if self._connection.execute("SELECT 1 FROM series WHERE id = ?", (row[1],)).fetchone() is None:
            raise _DamagedRowError(f"its series {row[1]} is missing")

    def _check_bundle(self, row: Sequence[Any]) -> None:
        bundle = parse_bundle(row[1:])
        numbers = bundle.numbers()
        times, starts = numbers.all.times, numbers.starts[:-1]
        ordered = np.diff(times, prepend=times[:1]) > 0
        ordered[starts] = True
        if not ordered.all() or (times.min(), times.max()) != (bundle.t_min, bundle.t_max):
            raise _DamagedRowError("its times are not in order")
        expected = Heads.of(numbers)
        for name in ("counts", "numbers", "last_times", "last_words", "last_integers"):
            if not np.array_equal(getattr(expected, name), getattr(bundle.heads, name)):
                raise _DamagedRowError("its heads do not match its points")
        series = bundle.heads.series
        (count,) = self._connection.execute(
            "SELECT count(*) FROM series WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(series.tolist()),)
        ).fetchone()
        if count != len(series):
            raise _DamagedRowError(f"{len(series) - count} of its series are missing")
        self._check_group((bundle.group,))

    def _check_group(self, row: Sequence[Any]) -> None:
        read_bundles(self._connection, row[0])

    def _check_rollup(self, row: Sequence[Any]) -> None:
        (
            segment,
            step_min,
            step_max,
            ascending,
            coarse,
            fine,
            seal,
            coarse_seal,
            fine_seal,
            series,
            *span,
        ) = row
        if series is None:
            raise _DamagedRowError("its segment is missing")
        if seal is None:
            self.unsealed["sample"] += 1
        summary = step_min, step_max, ascending
        if not rollups.is_rollup_sound(self._connection, seal, segment, Span(*span), series, summary):
            raise _DamagedRowError("the checksum does not match")
        if not is_sound(coarse_seal, segment, coarse) or not is_sound(fine_seal, segment, fine):
            raise _DamagedRowError("the checksum does not match")
        for blob in (coarse, decompress_words(fine)):
            Blocks.decode(np.frombuffer(blob, "<i8").reshape(1, Blocks.ROWS, -1))

    def _check_gap(self, row: Sequence[Any]) -> None:
        self._sound("gap", row[-1], *row[1:-1])

    def _check_event(self, row: Sequence[Any]) -> None:
        self._sound("event", row[-1], *row[1:-1])
        for name, text in zip(("body", "attributes", "record"), row[-4:-1], strict=True):
            _parse(text or "{}", name)
        self._check_process(row[1], row[2])

    def _check_line(self, row: Sequence[Any]) -> None:
        self._sound("log", row[-1], *row[1:-1])
        for name, text in zip(("attributes", "record"), row[-3:-1], strict=True):
            _parse(text or "{}", name)
        self._check_process(row[1], row[2])

    def _check_usage(self, row: Sequence[Any]) -> None:
        self._sound("log_usage", row[-1], *row[:-1])
        (lines,) = self._connection.execute("SELECT count(*) FROM log WHERE run = ?", (row[0],)).fetchone()
        if lines != row[1]:
            raise _DamagedRowError(f"it counts {row[1]} lines, but there are {lines}")

    def _check_process(self, run: int, process: int) -> None:
        (count,) = self._connection.execute(
            "SELECT count(*) FROM process WHERE id = ? AND run = ?", (process, run)
        ).fetchone()
        if not count:
            raise _DamagedRowError(f"its process {process} is missing from run {run}")

    def _check_media(self, row: Sequence[Any]) -> None:
        _, _, digest, content_type, data = row
        if hashlib.sha256(data).hexdigest() != digest:
            raise _DamagedRowError(f"its SHA-256 differs from the digest {digest}")
        if not is_of_type(data, content_type):
            raise _DamagedRowError(f"its content is not of type {content_type}")

    def _check_journal(self, row: Sequence[Any]) -> None:
        self._sound("journal", row[-1], row[1])
        try:
            decode_blocks(zstandard.decompress(row[1]))
        except (zstandard.ZstdError, EncodingError) as error:
            raise _DamagedRowError(str(error)) from None

    def _check_quarantined(self, row: Sequence[Any]) -> None:
        raise _DamagedRowError(
            "the server could not replay all points of this journal row at startup; a backup may contain the "
            "missing points"
        )


def _is_damage(error: BaseException | None) -> bool:
    """Return whether a correct statement failed because of the file's contents."""
    is_text = isinstance(error, CHANGED) or "decode to UTF-8" in str(error)
    return is_text or may_be_damage(error) or primary_code(error) == sqlite3.SQLITE_ERROR


def _parse(text: str | bytes, what: str) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        raise _DamagedRowError(f"{what}: {error}") from None
