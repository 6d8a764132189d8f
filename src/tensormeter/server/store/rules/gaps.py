"""Gaps: times at which a sender reports that a series of numbers has no value. Charts interrupt the line there."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import Batch
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.rules.ingest_series import Arrival, arrivals_of

__all__ = ["MAX_GAPS", "gap_times", "gaps_of"]

MAX_GAPS: Final = 10_000
"""Maximum number of gaps in a series. The newest ones are kept."""


def gaps_of(batches: Sequence[Batch], check: Check = no_check) -> list[Arrival]:
    """Return the gaps in batches that can be stored.

    The points of the arrivals represent gaps: each point has the time of a gap, and a meaningless value.
    """
    arrivals, _ = arrivals_of([Batch(batch.resource, batch.gaps) for batch in batches if batch.gaps], check)
    return arrivals


def gap_times(arrival: Arrival) -> NDArray[np.int64]:
    """Return the newest `MAX_GAPS` times of an arrival from `gaps_of`, ascending and distinct."""
    return np.unique(arrival.points.times)[-MAX_GAPS:]
