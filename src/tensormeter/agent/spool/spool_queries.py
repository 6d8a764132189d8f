"""Read-only queries of the spool."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.agent.spool.loss_report import Report
from tensormeter.agent.spool.request import Priority, intact
from tensormeter.agent.spool.spool_file import SpoolFile
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.exporter import Request

__all__ = ["Head", "SpoolQueries", "of_signals"]


class Head(NamedTuple):
    """The oldest request that is waiting for a destination, without its body.

    Attributes:
        retried: Whether the request was quarantined and then put back into the queue by `tensormeter spool retry`.
    """

    sequence: int
    id: str
    retried: bool


class SpoolQueries(SpoolFile):
    """Queries of an open spool."""

    def cursor(self, process: str, lane: int) -> Cursor:
        """Return the position up to which a lane has been read into this spool."""
        row = self._sealed("cursor", "process = ? AND lane = ?", process, lane)
        return Cursor(row[2], row[3]) if row else Cursor()

    def lifecycle(self, process: str) -> tuple[bool, bool]:
        """Return whether a process's start event and end event are in the spool."""
        row = self._sealed("process", "process = ?", process)
        return (bool(row[1]), bool(row[2])) if row else (False, False)

    def aggregates(self, process: str) -> dict[str, str]:
        """Return the stored states of a process's aggregated streams."""
        return {stream: state for _, stream, state in self._all_sealed("aggregate", "process = ?", process)}

    def processes(self) -> list[tuple[str, bool, str]]:
        """Return the processes in the spool, as (process, whether its end event is in the spool, origin or "")."""
        rows = self._rows(
            "SELECT process, ended, coalesce(description, '') FROM process LEFT JOIN origin USING (process) ORDER BY process"
        )
        return [(str(process), bool(ended), str(description)) for process, ended, description in rows]

    def last_time(self, process: str) -> int:
        """Return the time of a process's last row in the spool, in nanoseconds; 0 if there is none."""
        row = self._fetch("SELECT max(last_time) FROM cursor WHERE process = ?", process)
        return row[0] if row and isinstance(row[0], int) else 0

    def oldest(self) -> Request | None:
        """Return the oldest intact request for any destination, or None. Damaged requests are not counted as lost."""
        for row in self._fetch_all("SELECT id, signal, body, items, checksum FROM request ORDER BY sequence LIMIT 10"):
            if intact(row[0], row[1], row[3], row[2], row[4]):
                return Request(*row[:4])
        return None

    def head(self, destination: str, signals: Sequence[Signal] = SIGNALS, *, after: int = 0) -> Head | None:
        """Return a destination's oldest waiting request with one of the given signals.

        The request's checksum is not checked. A request whose signal is damaged matches any signal; `read` detects the
        damage.

        Args:
            destination: Name of the destination.
            signals: Signals to consider.
            after: Sequence number after which to search.
        """
        row = self._fetch(
            "SELECT sequence, id, retried FROM pending JOIN request USING (sequence) "
            f"WHERE destination = ? AND sequence > ? AND {of_signals(signals)} ORDER BY sequence LIMIT 1",
            destination,
            after,
        )
        return None if row is None else Head(row[0], str(row[1]), bool(row[2]))

    def sent_before(self, destination: str, sequence: int) -> str | None:
        """Return a waiting request's stored progress; None if none is stored, and "" if it was accepted undivided."""
        row = self._fetch("SELECT sent FROM kept WHERE destination = ? AND sequence = ?", destination, sequence)
        return None if row is None else str(row[0])

    def kept(self) -> int:
        """Return the number of accepted requests that are not known to be durable, counted once per destination."""
        return self._count("SELECT count(*) FROM kept WHERE epoch != ''")

    def keeps(self, destination: str, signals: Sequence[Signal] = SIGNALS) -> bool:
        """Return whether a destination has accepted requests that are not known to be durable."""
        query = "SELECT 1 FROM kept JOIN request USING (sequence) WHERE destination = ? AND epoch != '' AND "
        return self._fetch(f"{query} {of_signals(signals)} LIMIT 1", destination) is not None

    def losses(self) -> dict[str, int]:
        """Return the number of lost items, by reason. Quarantined items are not included."""
        losses: dict[str, int] = self._cached(
            "losses", lambda: {reason: items for reason, items, _ in self._all_sealed("loss", "1 ORDER BY reason")}
        )
        return losses

    def unreported_losses(self) -> dict[str, int]:
        """Return the number of lost items that `mark_losses_reported` has not marked, by reason."""
        rows = self._all_sealed("loss", "items > said ORDER BY reason")
        return {reason: items - reported for reason, items, reported in rows}

    @property
    def last_losses(self) -> dict[str, int]:
        """Result of the last call to `losses`, available without accessing the disk."""
        return dict(self._cache.get("losses", {}))

    def reports(self) -> list[Report]:
        """Return the last report of each process, in the order of the reports."""
        return [
            Report(process, *map(json.loads, (resource, dropped, reported)))
            for process, resource, dropped, reported, _ in self._all_sealed("report", "1 ORDER BY time")
        ]

    def pending_through(self, sequence: int, signals: Sequence[Signal] = SIGNALS) -> int:
        """Return the number of waiting requests with these signals up to a sequence number.

        A request is counted once for each destination that it waits for.
        """
        row = self._fetch(
            f"SELECT count(*) FROM pending JOIN request USING (sequence) WHERE sequence <= ? AND {of_signals(signals)}",
            sequence,
        )
        return int(row[0]) if row else 0

    def last_sequence(self) -> int:
        """Return the sequence number of the latest request, delivered or not; 0 if there was none."""
        row = self._fetch("SELECT seq FROM sqlite_sequence WHERE name = 'request'")
        return int(row[0]) if row else 0

    def abandoned(self, destinations: Iterable[str]) -> set[str]:
        """Return the destinations that have waiting requests but are not among the given ones."""
        return self.waiting_items().keys() - {*destinations}

    def waiting_items(self) -> dict[str, int]:
        """Return the number of waiting data points and log records, by destination."""
        return dict(self._rows("SELECT destination, sum(items) FROM pending GROUP BY destination ORDER BY destination"))

    def pending_items(self) -> int:
        """Return the number of waiting data points and log records, counted once for each destination."""
        return self._count("SELECT coalesce(sum(items), 0) FROM pending")

    def quarantined_items(self) -> int:
        """Return the number of rejected data points and log records."""
        return self._count("SELECT coalesce(sum(items), 0) FROM quarantine")

    def contents(self) -> list[tuple[str, str, str, int, int, int]]:
        """Return a summary of the queues for users: (destination, signal, priority, requests, items, bytes)."""
        rows = self._rows(
            "SELECT destination, signal, priority, count(*), sum(request.items), sum(length(body)) "
            "FROM pending JOIN request USING (sequence) GROUP BY destination, signal, priority "
            "ORDER BY destination, signal DESC, priority"
        )
        names = {int(priority): priority.name.lower() for priority in Priority}
        return [(row[0], str(row[1]), names.get(row[2], "damaged"), *row[3:]) for row in rows]

    def rejections(self) -> list[tuple[str, str, int]]:
        """Return the rejected items: (destination, reason, number of items)."""
        return self._rows("SELECT destination, reason, sum(items) FROM quarantine GROUP BY destination, reason")

    def used_bytes(self) -> int:
        """Return the size of the file's contents in bytes, without unused pages."""
        return self.bytes_of("page_count") - self.bytes_of("freelist_count")


def of_signals(signals: Sequence[Signal]) -> str:
    """Return an SQL condition that matches these signals in the column `signal`, and damaged values."""
    others = ", ".join(f"'{signal}'" for signal in SIGNALS if signal not in signals)
    return f"signal NOT IN ({others})" if others else "1"
