"""A cache of data that this server has committed."""

from collections.abc import Iterable
from typing import Final

from tensormeter.server.store.clickhouse.keys import series_key
from tensormeter.server.store.clickhouse.process_updates import NEVER, ProcessUpdate
from tensormeter.server.store.rules.ingest_series import Arrival

__all__ = ["CommitCache"]

_CACHED: Final = 200_000


class CommitCache:
    """A cache of names, attempt starts and keys, so that commits need not write or compute them again.

    Only one commit uses the cache at a time. Correctness does not depend on the cache, because a commit rewrites rows
    that are not cached.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[int, str], tuple[str, str]] = {}
        self._began: dict[tuple[int, str], tuple[int, int]] = {}
        self._keys: dict[tuple[int, str, str, str, str, str], int] = {}

    def key(self, run: int, arrival: Arrival) -> int:
        """Return the key of the series that an arrival belongs to."""
        about = (run, arrival.source.process, arrival.metric, arrival.kind, arrival.scope, arrival.attributes)
        key = self._keys.get(about)
        if key is None:
            if len(self._keys) > _CACHED:
                self._keys.clear()
            key = self._keys[about] = series_key(
                *about[:3], kind=arrival.kind, scope=arrival.scope, attributes=arrival.attributes
            )
        return key

    def is_changed(self, process: ProcessUpdate) -> bool:
        """Return whether a process's name or resource differs from the last one written."""
        return self._names.get((process.run, process.source.process)) != (process.source.name, process.source.resource)

    def begins_earlier(self, process: ProcessUpdate) -> bool:
        """Return whether a process of a later attempt has no cached start, or begins before its cached start."""
        step, began = self._began.get((process.run, process.source.process), (NEVER, NEVER))
        return process.first_step < step or process.began < began

    def remember(self, written: Iterable[ProcessUpdate]) -> None:
        """Add the names and attempt starts of updates that have been written."""
        if len(self._names) > _CACHED:
            self.forget()
        for process in written:
            key = process.run, process.source.process
            self._names[key] = process.source.name, process.source.resource
            if process.began != NEVER:
                known = self._began.get(key, (NEVER, NEVER))
                self._began[key] = min(known[0], process.first_step), min(known[1], process.began)

    def forget(self) -> None:
        """Clear names and attempt starts after a failure, when it is unknown which rows were written."""
        self._names.clear()
        self._began.clear()
