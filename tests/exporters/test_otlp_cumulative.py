"""Distributions for receivers that want cumulative temporality: the sum of all until then, over restarts as well."""

import gzip
import itertools

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.errors import SettingsError
from tensormeter.exporter import ExporterConfig, Request
from tensormeter_exporters.otlp.cumulative import DeltaToCumulative
from tensormeter_exporters.otlp.environment import wants_cumulative

CUMULATIVE, DELTA = 2, 1
NAMES = itertools.count()


def message(kind, *points, name="weights", temporality=DELTA, process="p1"):
    """A request with one metric; each point is a mapping of its fields."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="service.instance.id").value.string_value = process
    metric = resource.scope_metrics.add().metrics.add(name=name)
    data = getattr(metric, kind)
    data.aggregation_temporality = temporality
    for fields in points:
        data.data_points.add(**fields)
    return Request(f"id{next(NAMES)}", "metrics", gzip.compress(request.SerializeToString()), len(points))


def sent(request):
    (resource,) = ExportMetricsServiceRequest.FromString(gzip.decompress(request.body)).resource_metrics
    (metric,) = resource.scope_metrics[0].metrics
    data = getattr(metric, metric.WhichOneof("data"))
    assert data.aggregation_temporality == CUMULATIVE
    return list(data.data_points)


def deliver(sums, request):
    added = sums.add(request)
    sums.keep(added)
    return sent(added.request)


def exponential(values, time, scale=3, threshold=2.0**-64):
    """The point of an exponential histogram with these values (OpenTelemetry's data model: bucket of v is ceil(log_base v) - 1)."""
    values = np.asarray(values, np.float64)
    fields = {
        "time_unix_nano": time,
        "start_time_unix_nano": time,
        "count": len(values),
        "sum": values.sum(),
        "min": values.min(),
        "max": values.max(),
        "scale": scale,
        "zero_count": int((np.abs(values) <= threshold).sum()),
        "zero_threshold": threshold,
    }
    for name, sign in (("positive", 1), ("negative", -1)):
        side = sign * values[sign * values > threshold]
        if len(side):
            indices = np.ceil(np.log2(side) * 2.0**scale).astype(int) - 1
            first = int(indices.min())
            fields[name] = {"offset": first, "bucket_counts": np.bincount(indices - first).tolist()}
    return fields


def buckets(side):
    return {side.offset + number: count for number, count in enumerate(side.bucket_counts) if count}


def test_counts_grow_from_one_start():
    sums = DeltaToCumulative(None)
    rng = np.random.default_rng(0)
    parts = [rng.lognormal(0, 1, 50) for _ in range(6)]
    points = []
    for number, (first, second) in enumerate(itertools.pairwise(parts)):
        if number % 2 == 0:
            points += deliver(
                sums,
                message(
                    "exponential_histogram", exponential(first, 10**9 + number), exponential(second, 10**9 + number + 1)
                ),
            )
    everything = exponential(np.concatenate(parts), 1)
    assert [point.count for point in points] == [50, 100, 150, 200, 250, 300]
    assert {point.start_time_unix_nano for point in points} == {10**9 - 10**6}
    last = points[-1]
    assert last.sum == pytest.approx(everything["sum"])
    assert (last.min, last.max) == (everything["min"], everything["max"])
    coarser = everything["scale"] - last.scale
    expected: dict[int, int] = {}
    for number, count in enumerate(everything["positive"]["bucket_counts"]):
        index = everything["positive"]["offset"] + number >> coarser
        expected[index] = expected.get(index, 0) + count
    assert buckets(last.positive) == {index: count for index, count in expected.items() if count}


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_those_of_all_values_together(seed):
    rng = np.random.default_rng(seed)
    sums, everything, last = DeltaToCumulative(None), [], None
    for time in range(1, 8):
        scale = int(rng.integers(-2, 5))
        values = rng.normal(0, 10.0 ** rng.integers(-3, 4), 40) * rng.integers(0, 2, 40)
        everything.append(values)
        (last,) = deliver(sums, message("exponential_histogram", exponential(values, 10**9 * time, scale)))
        assert len(last.positive.bucket_counts) <= 160
        assert len(last.negative.bucket_counts) <= 160
    values = np.concatenate(everything)
    right = exponential(values, 1, last.scale)
    assert (last.count, last.zero_count) == (len(values), right["zero_count"])
    assert buckets(last.positive) == {
        right["positive"]["offset"] + number: count
        for number, count in enumerate(right["positive"]["bucket_counts"])
        if count
    }
    assert sum(last.negative.bucket_counts) == sum(right["negative"]["bucket_counts"])


def test_the_larger_zero_bucket_holds_both():
    sums = DeltaToCumulative(None)
    deliver(sums, message("exponential_histogram", exponential([0.001, 0.5, 3], 10**9, 0, 2.0**-64)))
    (point,) = deliver(sums, message("exponential_histogram", exponential([0.1, 3], 2 * 10**9, 0, 0.3)))
    assert (point.zero_count, point.zero_threshold, point.count) == (3, 0.5, 5)
    assert buckets(point.positive) == {1: 2}


def test_a_sum_with_negative_values_is_left_out_for_good():
    sums = DeltaToCumulative(None)
    points = [
        deliver(sums, message("exponential_histogram", exponential(values, 10**9 * time)))[0]
        for time, values in enumerate(([1, 2], [-1, 2], [5, 5]), 1)
    ]
    assert [point.HasField("sum") for point in points] == [True, False, False]
    assert [(point.min, point.max) for point in points] == [(1, 2), (-1, 2), (-1, 5)]


def explicit(time, counts, bounds=(0.0, 1.0), **more):
    return {
        "time_unix_nano": time,
        "start_time_unix_nano": time,
        "count": sum(counts),
        "bucket_counts": counts,
        "explicit_bounds": bounds,
        **more,
    }


def test_explicit_buckets_are_added_and_other_edges_begin_again():
    sums = DeltaToCumulative(None)
    points = deliver(
        sums,
        message(
            "histogram",
            explicit(10**9, [1, 2, 3], sum=5.0),
            explicit(2 * 10**9, [1, 0, 0], sum=1.0),
            explicit(3 * 10**9, [4, 0, 0], bounds=(0.0, 2.0), sum=4.0),
        ),
    )
    assert [list(point.bucket_counts) for point in points] == [[1, 2, 3], [2, 2, 3], [4, 0, 0]]
    assert [point.sum for point in points] == [5, 6, 4]
    assert [point.start_time_unix_nano for point in points] == [10**9 - 10**6, 10**9 - 10**6, 3 * 10**9 - 10**6]


def test_streams_are_told_apart():
    sums = DeltaToCumulative(None)
    for process, name in (("p1", "a"), ("p2", "a"), ("p1", "b")):
        (point,) = deliver(sums, message("histogram", explicit(10**9, [1, 1, 1]), name=name, process=process))
        assert point.count == 3


def test_sums_of_delta_temporality_are_added_up():
    sums = DeltaToCumulative(None)
    fields = {"start_time_unix_nano": 5, "as_int": 3}
    (first,) = deliver(sums, message("sum", {"time_unix_nano": 10, **fields}))
    (second,) = deliver(sums, message("sum", {"time_unix_nano": 20, **fields}))
    assert [(point.as_int, point.start_time_unix_nano) for point in (first, second)] == [(3, 5), (6, 5)]


@pytest.mark.parametrize("kind", ["histogram", "sum"])
def test_a_stream_begins_again_before_its_counts_overflow(kind):
    sums = DeltaToCumulative(None)
    large = (
        {"as_int": 2**63 - 1} if kind == "sum" else {"count": 2**63, "bucket_counts": [2**63], "explicit_bounds": []}
    )
    for time in (1, 2, 3):
        (point,) = deliver(
            sums, message(kind, {"time_unix_nano": 10**9 * time, "start_time_unix_nano": 10**9 * time, **large})
        )
    assert point.start_time_unix_nano == 3 * 10**9 - 10**6


def test_cumulative_points_stay_as_they_are():
    request = message("histogram", explicit(10**9, [1, 1, 1]), temporality=CUMULATIVE)
    assert DeltaToCumulative(None).add(request).request is request


def test_a_request_that_was_not_accepted_does_not_count():
    sums = DeltaToCumulative(None)
    request = message("histogram", explicit(10**9, [1, 1, 1]))
    for _ in range(3):
        assert sent(sums.add(request).request)[0].count == 3
    deliver(sums, request)
    assert sent(sums.add(message("histogram", explicit(2 * 10**9, [1, 0, 0]))).request)[0].count == 4


def test_sums_in_which_a_bit_has_changed_are_not_used(tmp_path):
    deliver(DeltaToCumulative(tmp_path), message("histogram", explicit(10**9, [1, 1, 1])))
    (file,) = (path for path in tmp_path.iterdir() if path.is_file())
    content = file.read_bytes()
    for at in range(content.index(b"\n") + 1, len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        (point,) = deliver(DeltaToCumulative(tmp_path), message("histogram", explicit(2 * 10**9, [0, 1, 0])))
        assert list(point.bucket_counts) == [0, 1, 0]


def test_the_next_agent_goes_on_with_the_same_sums(tmp_path):
    first = message("histogram", explicit(10**9, [1, 1, 1]))
    deliver(DeltaToCumulative(tmp_path / "otlp"), first)
    again = DeltaToCumulative(tmp_path / "otlp")
    assert again.has(first.id), "it was accepted, and its agent was killed before it could note that"
    (point,) = deliver(again, message("histogram", explicit(2 * 10**9, [0, 1, 0])))
    assert (list(point.bucket_counts), point.start_time_unix_nano) == ([1, 2, 1], 10**9 - 10**6)


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"x\n" + b"\xff" * 40, lambda data: b""])
def test_sums_that_are_lost_begin_again_with_a_new_start(tmp_path, damage, caplog):
    deliver(DeltaToCumulative(tmp_path), message("histogram", explicit(10**9, [1, 1, 1])))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    (point,) = deliver(DeltaToCumulative(tmp_path), message("histogram", explicit(2 * 10**9, [0, 1, 0])))
    assert (point.count, point.start_time_unix_nano) == (1, 2 * 10**9 - 10**6)


@pytest.mark.parametrize(
    ("variable", "option", "cumulative"),
    [
        (None, None, False),
        ("Cumulative", None, True),
        ("delta", None, False),
        ("lowmemory", None, False),
        ("nonsense", None, False),
        ("cumulative", "delta", False),
        (None, "cumulative", True),
    ],
)
def test_option_and_variable_choose_the_temporality(monkeypatch, variable, option, cumulative):
    if variable is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", variable)
    options = {} if option is None else {"temporality": option}
    config = ExporterConfig(endpoint="", token=None, timeout=1, destination="otlp", options=options)
    assert wants_cumulative(config) is cumulative


def test_an_unknown_temporality_is_refused():
    config = ExporterConfig(
        endpoint="", token=None, timeout=1, destination="otlp", options={"temporality": "sometimes"}
    )
    with pytest.raises(SettingsError, match="temporality"):
        wants_cumulative(config)
