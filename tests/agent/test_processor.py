"""The batching processor: when a batch is due, what is in it, and when the ring gets its space back."""

import math
import random
import threading

import numpy as np
import pytest

import tensormeter.agent.ingest.batch_processor as processor_module
from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.agent.ingest.gauge_gathering import GaugeRows, gather
from tensormeter.otlp.batch import STEP_METRIC, Batch
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.gauge_catalog import GaugeCatalog, GaugeMetadata
from tensormeter.otlp.gauge_points import GaugeEncoder, WideBatch
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import LANE_TABLE, PENDING


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(processor_module, "time", clock)
    return clock


def process(source, cursors=None, size=1000, delay=1.0):
    ring = RingFile.open(source.path)
    return BatchMeasurementProcessor(ring, cursors or {}, schedule_delay=delay, max_export_batch_size=size)


def rows_of(batch):
    """(step, values) of each row, put together by time."""
    rows = {}
    for gauge in batch.gauges:
        assert gauge.times.tolist() == sorted(gauge.times.tolist())
        for time, value in zip(gauge.times.tolist(), gauge.values.tolist(), strict=True):
            row = rows.setdefault(time, {})
            assert gauge.name not in row
            row[gauge.name] = value
    return [(row.pop(STEP_METRIC), row) for _, row in sorted(rows.items())]


def test_a_batch_is_due_when_the_last_one_is_long_enough_ago(source, clock):
    processor = process(source)
    assert not processor.poll(abandon_pending=False)
    assert processor.due_in() == math.inf
    source.log({"a": 1.0}, 3)
    assert processor.poll(abandon_pending=False)
    assert not processor.due()
    clock.now += 0.99
    source.log({"a": 2.0}, 4)
    assert processor.poll(abandon_pending=False)
    assert not processor.due()
    assert processor.due_in() == pytest.approx(0.01)
    clock.now += 0.02
    assert not processor.poll(abandon_pending=False)
    assert processor.due()
    assert processor.due_in() == 0
    batch, _ = processor.batch({"k": "v"})
    assert rows_of(batch) == [(3, {"a": 1.0}), (4, {"a": 2.0})]
    assert batch.resource == {"k": "v"}
    processor.release()
    assert not processor.due()
    assert processor.batch({}) is None


def test_a_row_after_a_pause_is_due_at_once(source, clock):
    processor = process(source)
    clock.now += 5
    source.log({"a": 1.0}, 3)
    assert processor.poll(abandon_pending=False)
    assert processor.due()


def test_due_rows_are_noticed_without_reading_them(source, clock):
    processor = process(source)
    clock.now += 1
    assert not processor.has_due_rows()
    source.log({"a": 1.0}, 3)
    assert processor.has_due_rows()
    assert processor.take_growth() == 0
    processor.poll(abandon_pending=False)
    assert not processor.has_due_rows()
    assert 0 < processor.take_growth() < 0.01
    assert processor.take_growth() == 0
    processor.batch({})
    processor.release()
    source.log({"a": 1.0}, 4)
    assert not processor.has_due_rows()
    clock.now += 1
    assert processor.has_due_rows()


@pytest.mark.parametrize("size", [1, 10, 99, 100])
def test_a_batch_is_due_by_size_and_rows_are_never_split(source, clock, size):
    for step in range(100):
        source.log({"a": float(step), "b": -float(step), "c": 0.5}, step)
    processor = process(source, size=size)
    sizes = []
    while processor.poll(abandon_pending=False):
        if not processor.due():
            break
        batch, _ = processor.batch({})
        assert size <= batch.points < size + 4
        sizes += rows_of(batch)
        processor.release()
    if processor.batch({}) is not None:
        sizes += rows_of(processor.batch({})[0])
    assert sizes == [(step, {"a": float(step), "b": -float(step), "c": 0.5}) for step in range(100)]


def test_a_full_batch_says_that_there_may_be_more(source, clock):
    """Else rows would be taken for the last ones when a batch could not be spooled at once."""
    for step in range(100):
        source.log({"a": 1.0}, step)
    processor = process(source, size=10)
    assert processor.poll(abandon_pending=False)
    assert processor.poll(abandon_pending=False)
    assert processor.batch({})[0].points == 10


def test_a_batch_is_due_when_the_ring_needs_the_space(new_source, clock):
    source = new_source(lanes=1, buffer_bytes=1 << 14)
    processor = process(source, size=1_000_000, delay=3600)
    for step in range(30):
        source.log({"a": 1.0}, step)
    assert processor.poll(abandon_pending=False)
    assert not processor.due()
    for step in range(30):
        source.log({"a": 1.0}, step)
    assert processor.poll(abandon_pending=False)
    assert processor.due()


def test_each_row_has_a_step(source, clock):
    source.log({"a": 1.0, "b": 2.0}, 7)
    source.log({"a": 3.0}, 7)
    source.log({"b": 4.0}, -(1 << 63))
    processor = process(source)
    processor.poll(abandon_pending=False)
    batch, _ = processor.batch({})
    assert rows_of(batch) == [(7, {"a": 1.0, "b": 2.0}), (7, {"a": 3.0}), (-(1 << 63), {"b": 4.0})]
    assert [gauge.name for gauge in batch.gauges].count(STEP_METRIC) == 1
    assert all(not gauge.attributes for gauge in batch.gauges)


def test_a_metric_of_both_kinds_of_number_keeps_them_apart(source, clock):
    source.log({"a": 1.5}, 0)
    source.log({"a": (1 << 53) + 1}, 1)
    source.log({"a": math.nan}, 2)
    processor = process(source)
    processor.poll(abandon_pending=False)
    batch, _ = processor.batch({})
    kinds = [(gauge.name, gauge.values.dtype.kind, len(gauge.times)) for gauge in batch.gauges]
    assert kinds == [(STEP_METRIC, "i", 3), ("a", "f", 2), ("a", "i", 1)]


def test_lanes_are_merged_in_order_of_time(source, clock):
    for number in range(5):
        source.log({"a": float(number)}, number)
        thread = threading.Thread(target=source.log, args=({"a": number + 0.5}, number))
        thread.start()
        thread.join(300)
    processor = process(source)
    processor.poll(abandon_pending=False)
    batch, cursors = processor.batch({})
    assert [row["a"] for _, row in rows_of(batch)] == [n + half for n in range(5) for half in (0.0, 0.5)]
    assert len(cursors) == len(source.ring.lanes)
    assert cursors[0].position > 0 < cursors[1].position
    assert cursors[2].position == 0


def test_held_rows_keep_their_space_and_survive_the_agent(source, clock):
    for step in range(10):
        source.log({"a": 1.0}, step)
    killed = process(source)
    killed.poll(abandon_pending=False)
    killed.batch({})
    after = process(source)
    after.poll(abandon_pending=False)
    batch, cursors = after.batch({})
    assert len(rows_of(batch)) == 10
    after.release()
    third = process(source, cursors)
    assert not third.poll(abandon_pending=False)
    source.log({"a": 1.0}, 10)
    assert third.poll(abandon_pending=False)
    assert [step for step, _ in rows_of(third.batch({})[0])] == [10]


def test_what_a_device_never_finished_is_counted_and_left_out(source, clock):
    lane = source.recorder._lanes.mine()
    layout = source.recorder._rows.layouts.of_gauges(("host", "x", "y"), "dDD")
    word = lane.write_pending(layout, "dDD", [1.0], 5)
    source.ring.words[word + 1] = 0
    assert source.ring.words[word] == PENDING
    assert source.ring.words[LANE_TABLE] > 0
    processor = process(source)
    assert not processor.poll(abandon_pending=False)
    assert processor.poll(abandon_pending=True)
    batch, _ = processor.batch({})
    assert rows_of(batch) == [(5, {"host": 1.0, "y": 0.0})]
    assert processor.lost == 0
    processor.release()
    assert processor.lost == 1


@pytest.mark.parametrize("size", [50, 2000, 1 << 30])
def test_rows_of_any_sets_of_names_and_types_arrive_whole(new_source, clock, size):
    source = new_source(buffer_bytes=8 << 20)
    chance = random.Random(7)
    names = [f"layer_{index}/norm" for index in range(400)]
    expected = []
    for step in range(300):
        chosen = chance.choice([names, names[:200], names[200:], chance.sample(names, 9), ["a", "b"]])
        row = {name: chance.choice([chance.random(), step]) if len(chosen) < 10 else chance.random() for name in chosen}
        source.log(row, step)
        expected.append((step, row))
    processor = process(source, size=size)
    rows = []
    while processor.poll(abandon_pending=False):
        batch, _ = processor.batch({})
        (decoded,) = decode_metrics(encode_metrics([batch]))
        assert decoded.points == batch.points
        rows += rows_of(decoded)
        processor.release()
    assert rows == expected


def test_a_wide_row_is_encoded_as_it_was_before(source, clock):
    """The bytes do not depend on how the agent gathers gauges."""
    row = {f"n{index}": index * 0.5 for index in range(100)} | {"count": 7}
    processor = process(source)
    for step in range(3):
        source.log(row, step)
    processor.poll(abandon_pending=False)
    batch, _ = processor.batch({"k": "v"})
    assert isinstance(batch, WideBatch)
    assert encode_metrics([batch]) == encode_metrics([Batch(batch.resource, batch.all_series)])


def test_points_of_several_threads_are_in_time_order():
    encoder = GaugeEncoder(GaugeCatalog())
    numbers = np.array([encoder.catalog.add(GaugeMetadata(name)) for name in "abc"])
    floats = np.zeros(3, np.bool_)

    def rows(times, gauges):
        words = np.array(times)[:, np.newaxis] * 10 + gauges
        return GaugeRows(numbers[gauges], floats[gauges], np.array(times, np.uint64), words)

    for parts in ([rows([5, 6, 1, 2], [2, 0])], [rows([1, 4], [2, 0]), rows([2, 3], [0, 1])]):
        points = gather(encoder, parts, ())
        assert points.gauges.tolist() == sorted(points.gauges.tolist())
        flat = np.repeat(points.gauges, points.counts).tolist()
        pairs = list(zip(flat, points.times.tolist(), strict=True))
        assert pairs == sorted(
            {(gauge, time) for part in parts for gauge in part.gauges.tolist() for time in part.times.tolist()}
        )
        assert points.words.tolist() == [time * 10 + gauge for gauge, time in pairs]
    assert gather(encoder, [], ()) is None
