"""Selection of the blocks of number points in a decoded request that can be stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tensormeter.otlp.batch import Batch
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.number_blocks import NumberBatch, NumberBlock
from tensormeter.server.store.rules.ingest_series import (
    Rejections,
    SeriesIdentity,
    identify_series,
    scope_text,
    valid_times,
)
from tensormeter.server.store.rules.resource_identity import Source, identify

__all__ = ["BlockArrival", "blocks_of"]


@dataclass(frozen=True, eq=False)
class BlockArrival:
    """The number points of one scope from one source. All points have valid times, and each stretch has points.

    Attributes:
        scope: Instrumentation scope; see `models.series.Series`.
    """

    source: Source
    scope: str
    block: NumberBlock

    @property
    def span(self) -> tuple[int, int]:
        """The earliest and the latest time."""
        return int(self.block.times.min()), int(self.block.times.max())

    def identify(self, stretches: Sequence[int]) -> Iterator[SeriesIdentity | str]:
        """Yield the identities of the series of stretches, or the reasons for refusing them. Raises EncodingError."""
        return (identify_series(series, self.scope) for series in self.block.describe(stretches))


def blocks_of(batches: Sequence[Batch], rejections: Rejections, check: Check = no_check) -> list[BlockArrival]:
    """Return the blocks that can be stored, and count refused points in `rejections`.

    `arrivals_of` returns the points of the same batches that are not in blocks, and counts those of refused sources.
    """
    arrivals: list[BlockArrival] = []
    for batch in batches:
        check()
        if not isinstance(batch, NumberBatch) or not batch.blocks:
            continue
        source = identify(batch.resource)
        if isinstance(source, str):
            continue
        for block in batch.blocks:
            timed = valid_times(block.times.view(np.int64), rejections)
            selected = block if timed is None else block.select(timed)
            if len(selected.times):
                arrivals.append(BlockArrival(source, scope_text(block.scope), selected))
    return arrivals
