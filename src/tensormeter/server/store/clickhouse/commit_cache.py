"""What a server remembers of its own commits."""

from collections.abc import Iterable
from typing import Final

from tensormeter.server.store.clickhouse.keys import series_key
from tensormeter.server.store.clickhouse.process_updates import NEVER, ProcessUpdate
from tensormeter.server.store.rules.ingest_series import Arrival

__all__ = ["CommitCache"]

_CACHED: Final = 200_000


class CommitCache:
    """Spares saying again what was said, and working out keys again. For one commit at a time.

    Other servers commit as well, and what is forgotten is said once more, so nothing depends on it being whole.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[int, str], tuple[str, str]] = {}
        self._began: dict[tuple[int, str], tuple[int, int]] = {}
        self._keys: dict[tuple[int, str, str, str, str, str], int] = {}

    def key(self, run: int, arrival: Arrival) -> int:
        """The key of a series."""
        about = (run, arrival.source.process, arrival.metric, arrival.kind, arrival.scope, arrival.attributes)
        key = self._keys.get(about)
        if key is None:
            if len(self._keys) > _CACHED:
                self._keys.clear()
            key = self._keys[about] = series_key(
                *about[:3], kind=arrival.kind, scope=arrival.scope, attributes=arrival.attributes
            )
        return key

    def is_news(self, one: ProcessUpdate) -> bool:
        """Whether name and resource of a process are not what was written of it last."""
        return self._told.get((one.run, one.source.process)) != (one.source.name, one.source.resource)

    def begins_earlier(self, one: ProcessUpdate) -> bool:
        """Whether readers cannot know yet where this process of a later attempt begins; also true when this server does not know."""
        step, began = self._began.get((one.run, one.source.process), (NEVER, NEVER))
        return one.first_step < step or one.began < began

    def remember(self, written: Iterable[ProcessUpdate]) -> None:
        """These have been written."""
        if len(self._told) > _CACHED:
            self.forget()
        for one in written:
            key = one.run, one.source.process
            self._told[key] = one.source.name, one.source.resource
            if one.began != NEVER:
                known = self._began.get(key, (NEVER, NEVER))
                self._began[key] = min(known[0], one.first_step), min(known[1], one.began)

    def forget(self) -> None:
        """It is not known what has been written."""
        self._told.clear()
        self._began.clear()
