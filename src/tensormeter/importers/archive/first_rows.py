"""The first step of each series in resumed attempts, which decides what a later attempt hides.

A store learns the first step of a metric from requests that contain a point together with its step. Steps and metrics are
separate series of an archive, so an import sends these points before all others, each request with its steps.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.archive.series_rows import SeriesKey, Stretch, Variant, stretches_of
from tensormeter.otlp.batch import STEP_METRIC

__all__ = ["FirstRows", "find_first_rows"]

_MOST_SERIES: Final = 2_000_000


@dataclass
class FirstRows:
    """The rows with the lowest step of each series of some processes.

    Attributes:
        steps: Step and time of the row of each series.
        times: Times of the rows, by process.
    """

    steps: dict[SeriesKey, tuple[int, int]] = field(default_factory=dict)
    times: dict[str, set[int]] = field(default_factory=dict)

    def mask(self, stretch: Stretch) -> NDArray[np.bool_]:
        """Return which rows of a stretch are among them: bool, shape (n,)."""
        if stretch.key.metric == STEP_METRIC:
            times = self.times.get(stretch.key.process)
            return np.isin(stretch.time, [*times]) if times else np.zeros(len(stretch.time), np.bool_)
        first = self.steps.get(stretch.key)
        return np.zeros(len(stretch.time), np.bool_) if first is None else stretch.time == first[1]

    def by_process(self, without: Collection[Variant]) -> Mapping[str, Mapping[int, int]]:
        """Return the step at each time, by process. Series of some metrics are left out."""
        steps: dict[str, dict[int, int]] = {}
        for key, (step, time) in self.steps.items():
            if key.variant not in without:
                steps.setdefault(key.process, {})[time] = step
        return steps


def find_first_rows(tables: Iterable[Any], processes: Collection[str]) -> FirstRows:
    """Find the rows with the lowest step of each series of some processes.

    Args:
        tables: Row groups of `points` and `distributions`.
        processes: IDs of the processes.
    """
    first = FirstRows()
    for table in tables:
        for stretch in stretches_of(table):
            key = stretch.key
            if key.process not in processes or key.metric == STEP_METRIC or not stretch.stepped.any():
                continue
            index = int(np.where(stretch.stepped, stretch.step, np.iinfo(np.int64).max).argmin())
            found = int(stretch.step[index]), int(stretch.time[index])
            if found < first.steps.get(key, (1 << 63, 0)) and (key in first.steps or len(first.steps) < _MOST_SERIES):
                first.steps[key] = found
    for key, (_, time) in first.steps.items():
        first.times.setdefault(key.process, set()).add(time)
    return first
