"""Self-metrics: what the agent says of the process and of itself is what happened."""

import gzip

import numpy as np
import pytest

from support.spools import take_requests
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.agent.ingest.self_metrics import SelfMetrics
from tensormeter.otlp.batch import Temporality
from tensormeter.otlp.decode import decode_metrics
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import Drop, HeaderWord, LaneWord, LogPath, State


@pytest.fixture
def health(source):
    ring = RingFile.open(source.path)
    processor = BatchMeasurementProcessor(ring, {}, schedule_delay=3600, max_export_batch_size=1000)
    return SelfMetrics(ring, processor, 10.0), processor, ring


def by_name(series):
    return {(line.name, *line.attributes.values()): line for line in series}


def test_what_a_report_says(source, health):
    health, processor, ring = health
    for number in range(200):
        source.recorder.log({"a": float(number)}, number)
    processor.poll(abandon_pending=False)
    ring.words[(ring.lanes[0][0] >> 3) + LaneWord.DROPS + Drop.RING_FULL] += 3
    processor.lost = 2
    series = by_name(health.report(7))
    general = series["tensormeter.log.duration", "general"]
    total, counts = ring.log_durations(LogPath.GENERAL)
    assert general.counts.tolist() == [sum(counts)]
    assert general.counts[0] >= 1
    assert general.buckets.tolist() == [counts]
    assert general.sums[0] == pytest.approx(total / 1e9)
    assert general.bounds.tolist() == [2**power / 1e9 for power in range(6, 31)]
    assert general.unit == "s"
    assert general.temporality is Temporality.CUMULATIVE
    assert series["tensormeter.rows",].values.tolist() == [200]
    assert series["tensormeter.dropped", "ring_full"].values.tolist() == [3]
    assert series["tensormeter.dropped", "device_unfinished"].values.tolist() == [2]
    assert {line.unit for line in series.values() if line.name == "tensormeter.dropped"} == {"{point}"}
    assert series["tensormeter.spool.requests",].values.tolist() == [7]
    assert 0 < series["tensormeter.ring.utilization",].values[0] < 1
    assert series["tensormeter.agent.lag",].values[0] > 0
    assert series["tensormeter.agent.lag",].description.startswith("Time since the agent read the oldest row")
    created = ring.words[HeaderWord.CREATED]
    assert {int(line.start_times[0]) for line in series.values() if line.name == "tensormeter.dropped"} == {created}
    assert all(line.times[0] > created for line in series.values())
    processor.batch({})
    processor.release()
    assert by_name(health.report(0))["tensormeter.agent.lag",].values.tolist() == [0.0]


def test_reports_come_at_their_interval_and_at_the_end(source, spool, open_drain, monkeypatch):
    drain = open_drain(source, self_metrics_interval=100)

    def reports():
        """The numbers of rows of the new reports in the spool."""
        row_counts = []
        for request in take_requests(spool):
            if request.signal == "metrics":
                (batch,) = decode_metrics(gzip.decompress(request.body))
                row_counts += [int(series.values[0]) for series in batch.series if series.name == "tensormeter.rows"]
        return row_counts

    now = np.float64(0)
    monkeypatch.setattr("tensormeter.agent.ingest.self_metrics.time.monotonic", lambda: float(now))
    source.recorder.log({"a": 1.0}, 0)
    now += 1e9
    drain.advance(flush=False)
    drain.advance(flush=False)
    assert reports() == [1]
    now += 100
    drain.advance(flush=False)
    assert reports() == [1]
    source.recorder.log({"a": 1.0}, 1)
    source.recorder.close(State.FINISHED)
    drain.advance(flush=False)
    now += 100
    drain.advance(flush=False)
    assert reports() == [2]
    spool.close()


def test_no_reports(source, health):
    _, processor, ring = health
    silent = SelfMetrics(ring, processor, 0)
    assert not silent.due()
    assert silent.report(0) == []
