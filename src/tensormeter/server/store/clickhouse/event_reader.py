"""Queries for events and images."""

from typing import Final

from tensormeter.conventions.semconv import ALERT_EVENT
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.run_reader import Runs
from tensormeter.server.store.models.errors import MAX_ANSWER_TEXT
from tensormeter.server.store.models.event_query import EventQuery
from tensormeter.server.store.models.runs import EventPage, RunRef, StoredEvent
from tensormeter.server.store.rules.events import stored_event

__all__ = ["EventReader"]

_COLUMNS: Final = "id, time, name, if(has_step, step, NULL), process, attributes, body, record"


class EventReader:
    """Reader of events and images. Thread-safe."""

    def __init__(self, connection: Connection, runs: Runs) -> None:
        self._connection = connection
        self._runs = runs

    def events(self, run: int, query: EventQuery) -> EventPage:
        """See `Store.events`."""
        conditions = [f"run = {run}"]
        if query.name is not None:
            conditions.append("startsWith(name, {name:String})" if query.name.endswith("*") else "name = {name:String}")
        if query.key is not None:
            conditions.append("has_key AND key = {key:String}")
        if query.start is not None:
            conditions.append(f"time >= {int(query.start)}")
        if query.stop is not None:
            conditions.append(f"time < {int(query.stop)}")
        texts = {"name": (query.name or "").removesuffix("*"), "key": query.key or ""}
        if query.before is not None:
            conditions.append(f"(time, id) < ({int(query.before[0])}, {int(query.before[1])})")
        wanted = f"FROM event FINAL WHERE {' AND '.join(conditions)} ORDER BY time DESC, id DESC"
        sizes = self._connection.rows(
            f"SELECT lengthUTF8(attributes), lengthUTF8(body) {wanted} LIMIT {int(query.limit) + 1}", **texts
        )
        total = number = 0
        for attributes, body in sizes[: int(query.limit)]:
            total += attributes + (body if query.max_body is None or body <= query.max_body else 0)
            if number and total > MAX_ANSWER_TEXT:
                break
            number += 1
        rows = self._connection.rows(f"SELECT {_COLUMNS} {wanted} LIMIT {number}", **texts) if number else []
        return EventPage([stored_event(row, query.max_body) for row in rows], more=number < len(sizes))

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """See `Store.alerts`."""
        rows = self._connection.rows(
            f"SELECT run, {_COLUMNS} FROM event FINAL WHERE name = {{name:String}} AND id > {int(after)}"
            f" AND run GLOBAL NOT IN (SELECT run FROM deleted) ORDER BY id LIMIT {int(limit)}",
            name=ALERT_EVENT,
        )
        names = self._runs.names({row[0] for row in rows})
        return [(names[row[0]], stored_event(row[1:])) for row in rows if row[0] in names]

    def media(self, run: int, digest: str) -> tuple[str, bytes] | None:
        """Return the content type and bytes of an image from a run; None if the run has no such image."""
        where = f"FROM media FINAL WHERE run = {run} AND digest = {{digest:String}} LIMIT 1"
        if len(digest) != 64 or not digest.isascii():
            return None
        rows = self._connection.rows(f"SELECT content_type {where}", digest=digest)
        if not rows:
            return None
        encoded = self._connection.raw(f"SELECT data {where}", digest=digest)
        size, start = 0, 0
        while True:
            size |= (encoded[start] & 0x7F) << 7 * start
            start += 1
            if encoded[start - 1] < 0x80:
                return rows[0][0], encoded[start : start + size]
