"""Keys of runs and series, which are the same on every server, and arrival numbers."""

import hashlib
import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.canonical_json import canonical_json

__all__ = ["Numbers", "SeriesFields", "invert", "run_key", "series_key", "series_keys", "steps_key"]

_ALL_BITS: Final = (1 << 64) - 1

_CACHED: Final = 10_000
"""Maximum number of keys in each cache. Each series in a request needs the keys of its run and of the step series."""

_ENDS: Final = 1000


class SeriesFields(Protocol):
    """The fields that distinguish the series of a process; see `Arrival`."""

    @property
    def metric(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def scope(self) -> str: ...

    @property
    def attributes(self) -> str: ...


@lru_cache(_CACHED)
def run_key(project: str, run_id: str, generation: int) -> int:
    """Return the key of a run. `generation` is the time at which the last run with this ID was deleted, or 0."""
    return _hash([project, run_id, generation])


def series_key(run: int, process: str, metric: str, *, kind: str, scope: str, attributes: str) -> int:
    """Return the key of a series in a run."""
    return _hash([run, process, metric, kind, scope, attributes])


def series_keys(run: int, process: str, series: Iterable[SeriesFields]) -> NDArray[np.uint64]:
    """Return the key of each of several series of one process. The keys equal those of `series_key`."""
    begin = f"[{run},{encode_basestring(process)},"
    ends: dict[tuple[str, str, str], str] = {}
    digests = []
    for item in series:
        about = item.kind, item.scope, item.attributes
        end = ends.get(about)
        if end is None:
            if len(ends) >= _ENDS:  # each series may have attributes of its own
                ends.clear()
            end = ends[about] = f",{','.join(map(encode_basestring, about))}]"
        text = begin + encode_basestring(item.metric) + end
        digests.append(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8])
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


@lru_cache(_CACHED)
def steps_key(run: int, process: str) -> int:
    """Return the key of the step series that tensormeter writes for a process."""
    return series_key(run, process, STEP_METRIC, kind="gauge", scope="", attributes="{}")


def invert(number: int) -> int:
    """Convert an arrival number to its precedence, or back. Earlier arrivals have a higher precedence."""
    return _ALL_BITS - number


class Numbers:
    """Generator of arrival numbers: microseconds on this server's clock, strictly increasing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def take(self, count: int = 1) -> int:
        """Reserve `count` consecutive numbers, and return the first one."""
        with self._lock:
            first = max(self._last + 1, time.time_ns() // 1000)
            self._last = first + count - 1
            return first


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.sha256(canonical_json(value).encode("utf-8", "replace")).digest()[:8], "big")
