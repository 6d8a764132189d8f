"""Steps are found by time, and distributions become numbers and buckets."""

import numpy as np
import pytest

from tensormeter.otlp.batch import Batch, Event
from tensormeter.otlp.media import Alert, Image, Table, Text
from tensormeter_exporters.otlp_series import bucket_edges, flatten, read_events, read_metrics, scalars

TINY = float(np.nextafter(0.0, 1.0))


def test_steps_are_joined_by_process_and_exact_time(make):
    rows = {30: {"loss": 1.0}, 10: {"loss": 2.0, "acc": 0.5}, 20: {"loss": 3.0}}
    request = make.metrics(
        1,
        Batch(make.resource(process="a"), make.rows(rows)),
        Batch(make.resource(process="b"), make.rows({7: {"loss": 9.0}})),
    )
    stepped = {(item.sender.process, item.name): item for item in read_metrics(request)}
    assert stepped.keys() == {("a", "loss"), ("a", "acc"), ("b", "loss")}
    assert stepped["a", "loss"].steps.tolist() == [30, 10, 20]
    assert stepped["a", "acc"].steps.tolist() == [10]
    assert stepped["b", "loss"].steps.tolist() == [7]
    assert all(item.stepped.all() for item in stepped.values())


def test_a_value_without_a_step_stands_at_its_second(make):
    sensor = make.gauge("hw.power", [make.T0 + 1], [250.0], **{"hw.id": "GPU-0"})
    (stepped,) = [
        item for item in read_metrics(make.logged(1, [*make.rows({1: {"a": 1.0}}), sensor])) if item.name != "a"
    ]
    assert stepped.name == "hw.power{hw.id=GPU-0}"
    assert not stepped.stepped.any()
    assert stepped.steps.tolist() == [make.T0 // 10**9]


def test_distributions_become_numbers(make):
    (stepped,) = read_metrics(make.logged(1, [make.histogram("grad", make.T0)]))
    assert {numbers.name: numbers.values.tolist() for numbers in scalars(stepped)} == {
        "grad/count": [5],
        "grad/mean": [6.5],
        "grad/min": [-1.0],
        "grad/max": [30.0],
    }


def test_buckets_have_finite_edges_and_keep_every_count(make):
    edges, counts = bucket_edges(make.histogram("h", make.T0), 0)
    assert edges.tolist() == [-1.0, 0.0, 1.0, 2.0, 30.0]
    assert counts.tolist() == [1, 1, 2, 1]
    edges, counts = bucket_edges(make.exponential_histogram("e", make.T0), 0)
    assert edges.tolist() == [-4.0, -2.0, -TINY, 0.0, 1.0, 2.0, 4.0]
    assert counts.tolist() == [1, 0, 2, 0, 3, 4]
    assert np.all(np.diff(edges) > 0)


def test_events_carry_media_and_report_faults(make):
    table = Table("samples", ["x", "y"], [[1, "a"], [None, 2.5]])
    good = [
        table.event(make.T0, 3),
        Image("sample", b"\x89PNG", "image/png", 1, 2, "a caption").event(make.T0, None),
        Text("note", "hello").event(make.T0, 4),
        Alert("nan", "loss is NaN", "ERROR").event(make.T0, 5),
    ]
    bad = Event("tensormeter.table", make.T0, {"columns": ["a"], "rows": [[1, 2]]}, {"tensormeter.key": "t"})
    events = read_events(make.logs(1, *good, bad, make.start({})))
    assert [run_event.media for run_event in events[:4]] == [table, *[run_event.media for run_event in events[1:4]]]
    assert [type(run_event.media) for run_event in events[:4]] == [Table, Image, Text, Alert]
    assert [run_event.step for run_event in events] == [3, None, 4, 5, None, None]
    assert "row 0 has 2 cells; expected 1" in events[4].error
    assert events[5].media is None
    assert not events[5].error


def test_media_are_bounded():
    with pytest.raises(ValueError, match="log the table in parts"):
        Table("t", ["a"] * 1001, [[0] * 1001] * 1000)
    with pytest.raises(ValueError, match="the limit is 4 MiB"):
        Text("t", "x" * (4 << 20 | 1))
    with pytest.raises(ValueError, match="image/png"):
        Image("i", b"", "text/html", 1, 1)


def test_configurations_are_flattened():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
