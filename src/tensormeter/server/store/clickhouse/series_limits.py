"""The limits on the numbers of series and metric names in a run."""

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.name_filter import DIGEST, digest_of
from tensormeter.server.store.clickhouse.series_batch import SeriesBatch
from tensormeter.server.store.rules import limits

__all__ = ["NameLimit", "refuse_excess"]

_CACHED: Final = 4_000_000
"""Maximum number of names in memory, which take 8 bytes each. The names of the latest run stay in memory in any case."""

_REFUSED: Final = 1_000_000
"""Maximum number of refused names of a run in memory."""


@dataclass(eq=False, slots=True)
class _Run:
    """The names of a run, as digests.

    Attributes:
        known: uint64, ascending: names that were stored when they were last read.
        series: Number of series at that time.
        refused: Names beyond the limit.
    """

    known: NDArray[np.uint64]
    series: int
    refused: set[int] = field(default_factory=set)


class NameLimit:
    """The limit on names. Only one commit at a time uses it.

    A run that has no more series than names are allowed is within the limit. The names of other runs, which any server may
    have stored, are read from the table `catalog` if there are metrics that are not in memory.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._runs: OrderedDict[int, _Run] = OrderedDict()

    def refused(self, run: int, series: int, metrics: Sequence[str]) -> set[str]:
        """Return which metrics of new series exceed the limit.

        Args:
            run: Key of the run.
            series: Number of series in the run.
            metrics: Metric of each new series in order of arrival, with repetitions.
        """
        entry = self._runs.get(run)
        most = series if entry is None else len(entry.known) + max(series - entry.series, 0)
        if most + len(metrics) <= limits.MAX_NAMES_PER_RUN:
            return set()
        digests = {digest_of(metric): metric for metric in metrics if not limits.is_reserved(metric)}
        refused = set() if entry is None else digests.keys() & entry.refused
        unknown = [digest for digest in digests if digest not in refused]
        if entry is not None:
            unknown = _absent(entry.known, unknown)
        if unknown:
            entry = self._read(run, series, refused)
            excess = _absent(entry.known, unknown)[max(limits.MAX_NAMES_PER_RUN - len(entry.known), 0) :]
            if len(entry.known) >= limits.MAX_NAMES_PER_RUN and len(entry.refused) + len(excess) <= _REFUSED:
                entry.refused.update(excess)
            refused.update(excess)
        return {digests[digest] for digest in refused}

    def forget(self) -> None:
        """Clear the cache."""
        self._runs.clear()

    def _read(self, run: int, series: int, refused: set[int]) -> _Run:
        known = self._connection.columns(
            f"SELECT DISTINCT {DIGEST} AS digest FROM catalog"
            f" WHERE run = {run} AND NOT startsWith(metric, {{reserved:String}}) ORDER BY digest",
            np.dtype("<u8"),
            reserved=limits.RESERVED,
        )
        entry = self._runs[run] = _Run(known, series, refused)
        self._runs.move_to_end(run)
        while len(self._runs) > 1 and sum(len(entry.known) for entry in self._runs.values()) > _CACHED:
            self._runs.popitem(last=False)
        return entry


def refuse_excess(
    batches: Sequence[SeriesBatch], unknown: Sequence[NDArray[np.bool_]], counts: Mapping[int, int], names: NameLimit
) -> None:
    """Refuse the new series that exceed a run's limits.

    Args:
        batches: Batches of one commit.
        unknown: Which series of each batch are new.
        counts: Number of stored series of each run.
        names: Limit on the number of names.
    """
    reasons = [np.zeros(len(batch), np.int8) for batch in batches]
    new: dict[int, list[tuple[int, NDArray[np.intp]]]] = defaultdict(list)
    for number, batch in enumerate(batches):
        for run, part in batch.parts_of_runs():
            series = part.start + np.flatnonzero(unknown[number][part])
            new[run].append((number, series[np.argsort(batch.origins[series])]))
    for run, parts in new.items():
        room = max(limits.MAX_SERIES_PER_RUN - counts[run], 0)
        is_narrow = counts[run] + sum(len(series) for _, series in parts) <= limits.MAX_NAMES_PER_RUN
        metrics = [
            [] if is_narrow else [batches[number].identify(each).metric for each in series.tolist()]
            for number, series in parts
        ]
        refused = names.refused(run, counts[run], [*chain.from_iterable(metrics)])
        for (number, series), of_series in zip(parts, metrics, strict=True):
            named = series
            if refused:
                is_refused = np.array([metric in refused for metric in of_series], np.bool_)
                reasons[number][series[is_refused]] = 1
                named = series[~is_refused]
            reasons[number][named[room:]] = 2
            room = max(room - len(named), 0)
    for batch, of_batch in zip(batches, reasons, strict=True):
        for reason, text in ((1, limits.too_many_names()), (2, limits.too_many_series())):
            if (of_batch == reason).any():
                batch.refuse(of_batch == reason, text)


def _absent(known: NDArray[np.uint64], digests: Sequence[int]) -> list[int]:
    """Return the digests that are not among known ones, which are in ascending order."""
    if not len(known):
        return list(digests)
    wanted = np.array(digests, np.uint64)
    nearest = known[np.minimum(np.searchsorted(known, wanted), len(known) - 1)]
    absent: list[int] = wanted[nearest != wanted].tolist()
    return absent
