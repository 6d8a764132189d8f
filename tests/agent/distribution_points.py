"""The distributions that the agent makes of log calls, for tests."""

import collections

from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.agent.ingest.histogram_points import NONFINITE_METRIC
from tensormeter.otlp.batch import STEP_METRIC, Batch
from tensormeter.ring.file import RingFile


def narrow(batch):
    """The same batch with all of its gauges among the series."""
    return Batch(batch.resource, batch.all_series)


class Reading:
    """Reads the rows of a source as the agent does."""

    def __init__(self, source):
        self.processor = BatchMeasurementProcessor(
            RingFile.open(source.path), {}, schedule_delay=1.0, max_export_batch_size=1 << 30
        )

    def batch(self, *, abandon=False):
        self.processor.poll(abandon_pending=abandon)
        counted = self.processor.batch({})
        self.processor.release()
        return counted and narrow(counted[0])

    def series(self, name, **options):
        batch = self.batch(**options)
        return [series for series in batch.series if series.name == name] if batch else []


def nonfinite(batch):
    return {
        (series.attributes["tensormeter.metric"], series.attributes["tensormeter.kind"]): series.values.tolist()
        for series in batch.series
        if series.name == NONFINITE_METRIC
    }


def side(buckets, row=0):
    """Counts by index of one side of one point."""
    return {
        int(buckets.offsets[row]) + i: int(count) for i, count in enumerate(buckets.counts[row].tolist()) if count > 0
    }


def steps_of(source, *names):
    """The points since the last call as (step, count, sum, minimum, maximum), by name."""
    batch = Reading(source).batch()
    steps = {series.name: series for series in batch.series if not series.attributes}[STEP_METRIC]
    step_at = dict(zip(steps.times.tolist(), steps.values.tolist(), strict=True))
    points = collections.defaultdict(list)
    for series in batch.series:
        if series.name in names:
            rows = zip(series.times, series.counts, series.sums, series.minima, series.maxima, strict=True)
            points[series.name] += [(step_at[int(time)], *map(float, row)) for time, *row in rows]
    return dict(points)
