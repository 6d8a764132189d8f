"""A cache of what this server has committed."""

from collections.abc import Iterable
from typing import Final

from tensormeter.server.store.clickhouse.keys import series_key
from tensormeter.server.store.clickhouse.process_updates import NEVER, ProcessUpdate
from tensormeter.server.store.rules.ingest_series import Arrival

__all__ = ["CommitCache"]

_CACHED: Final = 200_000


class CommitCache:
    """Caches names, starts of attempts and keys, so that commits do not write or compute them again. For one commit at a time.

    Correctness does not depend on it. Other servers commit as well, and a commit rewrites rows that are not in the cache.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[int, str], tuple[str, str]] = {}
        self._began: dict[tuple[int, str], tuple[int, int]] = {}
        self._keys: dict[tuple[int, str, str, str, str, str], int] = {}

    def key(self, run: int, arrival: Arrival) -> int:
        """Return the key of a series."""
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
        """Whether name or resource of a process differ from those written last."""
        return self._names.get((process.run, process.source.process)) != (process.source.name, process.source.resource)

    def begins_earlier(self, process: ProcessUpdate) -> bool:
        """Whether this process of a later attempt begins earlier than was written; true as well if the cache has no start of it."""
        step, began = self._began.get((process.run, process.source.process), (NEVER, NEVER))
        return process.first_step < step or process.began < began

    def remember(self, written: Iterable[ProcessUpdate]) -> None:
        """Cache updates that were written."""
        if len(self._names) > _CACHED:
            self.forget()
        for process in written:
            key = process.run, process.source.process
            self._names[key] = process.source.name, process.source.resource
            if process.began != NEVER:
                known = self._began.get(key, (NEVER, NEVER))
                self._began[key] = min(known[0], process.first_step), min(known[1], process.began)

    def forget(self) -> None:
        """Clear the cache after a failure, because it is unknown which rows were written."""
        self._names.clear()
        self._began.clear()
