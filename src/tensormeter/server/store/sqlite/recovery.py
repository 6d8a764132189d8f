"""Recovery at startup: replay of the commit log into the memtable, and quarantine of unreadable requests."""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tensormeter.errors import EncodingError, StoreError
from tensormeter.otlp.number_blocks import decode_blocks
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.rules.ingest_blocks import BlockArrival, blocks_of
from tensormeter.server.store.rules.ingest_series import Arrival, arrivals_of
from tensormeter.server.store.sqlite.integrity.damage import Damage
from tensormeter.server.store.sqlite.integrity.suspicion import DamageVerifier
from tensormeter.server.store.sqlite.points.memtable import Memtable
from tensormeter.server.store.sqlite.tables import commit_log
from tensormeter.server.store.sqlite.tables.catalog import Catalog
from tensormeter.server.store.sqlite.transaction import may_be_damage, writing

__all__ = ["Recovery"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """The recovery of a store at startup, for use by the thread that opens the store.

    Attributes:
        file: Path of the database.
        writer: Connection to write with.
        connect: Function that opens a new connection to read with.
        catalog: Catalog of the store.
        memtable: Empty memtable to which points are added.
        damage: Record of the store's damage, to which unreadable requests are added.
        verifier: Verifier that can read the whole file.
    """

    file: Path
    writer: sqlite3.Connection
    connect: Callable[[], sqlite3.Connection]
    catalog: Catalog
    memtable: Memtable
    damage: Damage
    verifier: DamageVerifier

    def replay(self, connection: sqlite3.Connection) -> None:
        """Read the commit log with `connection`, and add its points to the memtable.

        Raises:
            StoreError: The disk cannot read the log.
        """
        self.memtable.begin(commit_log.flushed(connection))
        for seq, entry in commit_log.replay(connection):
            try:
                payload = self._reread(seq, entry) if isinstance(entry, DamagedError) else entry
                batches = decode_blocks(payload)
                arrivals, rejections = arrivals_of(batches)
                blocks = blocks_of(batches, rejections)
            except (DamagedError, EncodingError) as error:
                self.damage.add(error)
                self._quarantine(seq, remove=True)
                continue
            orphans: list[Arrival | BlockArrival] = []
            placed = [*self.catalog.place(seq, arrivals, orphans)]
            self.memtable.append(seq, placed, self.catalog.place_blocks(seq, blocks, orphans))
            if orphans:
                self.damage.add(_missing_series(seq, orphans))
                self._quarantine(seq, remove=False)

    def _reread(self, seq: int, error: DamagedError) -> bytes:
        """Read a journal row again on a new connection, because the disk may have failed only briefly.

        Raises:
            DamagedError: The row is damaged.
            StoreError: The disk cannot read the row.
        """
        try:
            if may_be_damage(error.__cause__):
                self.verifier.read()
            with closing(self.connect()) as connection:
                payload = commit_log.find_payload(connection, seq)
        except (OSError, sqlite3.OperationalError) as failure:
            raise StoreError(f"the disk cannot read {self.file}: {failure}") from failure
        except sqlite3.DatabaseError:
            raise error from None
        if payload is None:
            raise error
        return payload

    def _quarantine(self, seq: int, *, remove: bool) -> None:
        try:
            with writing(self.writer):
                commit_log.quarantine(self.writer, seq, remove=remove)
        except StoreError as error:
            _log.warning("tensormeter: cannot quarantine journal row %d: %s", seq, error)


def _missing_series(seq: int, orphans: Sequence[Arrival | BlockArrival]) -> DamagedError:
    example = orphans[0]
    identity = next(example.identify([0])) if isinstance(example, BlockArrival) else example
    metric = identity if isinstance(identity, str) else identity.metric
    points = sum(len(orphan.block.times if isinstance(orphan, BlockArrival) else orphan.points) for orphan in orphans)
    return DamagedError(
        f"damaged: {points} points of journal row {seq} belong to missing series, such as metric {metric!r} of run "
        f"{example.source.run_id!r}; the request is kept in the table `damaged`"
    )
