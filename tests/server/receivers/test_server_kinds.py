"""Every kind of metric, in protobuf and in JSON, from senders that are not tensormeter."""

import gzip
import json
import math
import struct

import numpy as np
import pytest
import zstandard
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.exporter import Accepted, ExporterConfig, Request
from tensormeter.otlp.batch import Batch, Buckets, ExponentialHistogram, Gauge, Histogram, Sum, Summary, Temporality
from tensormeter.otlp.content_codings import PLANES
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.point_planes import split_planes
from tensormeter_exporters.experiment import ExperimentExporter

T0 = 1_750_000_000_000_000_000
S = 10**9


def u64(*values):
    return np.array(values, np.uint64)


def f64(*values):
    return np.array(values, np.float64)


def every_kind():
    """One series of each kind, two points each, and a step for each time."""
    times, starts = u64(T0, T0 + S), u64(T0 - S, T0 - S)
    counts, sums, low, high = u64(3, 4), f64(6, 10), f64(1, 1), f64(3, math.nan)
    return [
        Gauge("tensormeter.step", times, np.array([10, 11])),
        Gauge("gauge", times, f64(0.5, math.nan)),
        Sum("sum", times, np.array([1, 2**60]), starts),
        Sum("delta", times, f64(1, 2), starts, monotonic=False, temporality=Temporality.DELTA),
        Histogram(
            "explicit",
            times,
            starts,
            counts,
            sums,
            low,
            high,
            bounds=f64(1, 2),
            buckets=np.array([[1, 1, 1], [2, 1, 1]], np.uint64),
            attributes={"layer": "fc"},
        ),
        ExponentialHistogram(
            "exponential",
            times,
            starts,
            counts,
            sums,
            low,
            high,
            scales=np.array([0, 0]),
            zero_counts=u64(1, 0),
            zero_thresholds=f64(0, 0),
            positive=Buckets(np.array([0, 1]), [u64(1, 1), u64(3)]),
            negative=Buckets(np.array([0, 0]), [u64(), u64(1)]),
        ),
        Summary("quantiles", times, starts, counts, sums, f64(0.5, 1), np.array([[2.0, 3.0], [2.0, math.inf]])),
    ]


def check_every_kind(server, run):
    metrics = {metric["name"]: metric for metric in server.get(f"/api/v1/runs/{run}/metrics")["metrics"]}
    kinds = {name: (metric["kind"], metric["temporality"], metric["monotonic"]) for name, metric in metrics.items()}
    assert kinds == {
        "tensormeter.step": ("gauge", None, None),
        "gauge": ("gauge", None, None),
        "sum": ("sum", "cumulative", True),
        "delta": ("sum", "delta", False),
        "explicit": ("histogram", "cumulative", None),
        "exponential": ("exponential_histogram", "cumulative", None),
        "quantiles": ("summary", None, None),
    }
    assert all(metric["points"] == 2 for metric in metrics.values())
    assert metrics["explicit"]["last"] is None
    assert metrics["explicit"]["last_step"] == 11
    assert metrics["sum"]["last"] == 2**60
    (series,) = server.get(f"/api/v1/runs/{run}/series", metric="sum")["series"]
    assert (series["step"], series["value"]) == ([10, 11], [1, 2**60])
    (series,) = server.get(f"/api/v1/runs/{run}/series", metric="delta")["series"]
    assert series["value"] == [1.0, 2.0]

    def points(metric):
        return server.get(f"/api/v1/runs/{run}/histograms", metric=metric)["points"]

    assert points("explicit") == [
        {"x": 10.0, "count": 3, "sum": 6.0, "min": 1.0, "max": 3.0, "bounds": [1.0, 2.0], "counts": [1, 1, 1]},
        {"x": 11.0, "count": 4, "sum": 10.0, "min": 1.0, "max": None, "bounds": [1.0, 2.0], "counts": [2, 1, 1]},
    ]
    first, second = points("exponential")
    assert (first["bounds"], first["counts"]) == ([-5e-324, 0.0, 1.0, 2.0, 4.0], [0, 1, 0, 1, 1, 0])
    assert (second["bounds"], second["counts"]) == ([-2.0, -1.0, 2.0, 4.0], [0, 1, 0, 3, 0])
    first, second = points("quantiles")
    assert (first["count"], first["quantiles"]) == (3, [[0.5, 2.0], [1.0, 3.0]])
    assert second["quantiles"] == [[0.5, 2.0], [1.0, "Infinity"]]


def test_every_kind_in_protobuf(server, make):
    assert server.metrics(Batch(make.resource("kinds"), every_kind())).data == b""
    check_every_kind(server, "kinds")
    server.metrics(Batch(make.resource("kinds"), every_kind()))  # without a batch id, so it is the times that tell
    (series,) = server.get("/api/v1/runs/kinds/series", metric="sum")["series"]
    assert series["value"] == [1, 2**60]
    assert server.get("/api/v1/runs/kinds/histograms", metric="explicit")["total"] == 2


def test_every_kind_survives_a_restart_from_the_journal_and_from_chunks(start, make):
    server = start()
    assert server.metrics(Batch(make.resource("kinds"), every_kind()), batch_id="1").data == b""
    check_every_kind(server, "kinds")
    server.kill()
    server = start()
    check_every_kind(server, "kinds")
    assert server.stop() == 0
    check_every_kind(start(), "kinds")


JSON_REQUEST = {
    "resourceMetrics": [
        {
            "resource": {
                "attributes": [
                    {"key": "service.name", "value": {"stringValue": "json"}},
                    {"key": "service.instance.id", "value": {"stringValue": "i"}},
                    {"key": "n", "value": {"intValue": "9007199254740993"}},
                    {"key": "list", "value": {"arrayValue": {"values": [{"boolValue": True}, {"doubleValue": 1.5}]}}},
                ],
                "unknown": {"anything": [1]},
            },
            "scopeMetrics": [
                {
                    "scope": {"name": "my.library", "version": "1.0"},
                    "metrics": [
                        {
                            "name": "g",
                            "unit": "1",
                            "gauge": {
                                "dataPoints": [
                                    {
                                        "timeUnixNano": str(T0),
                                        "asDouble": 10,
                                        "exemplars": [{"traceId": "5b8efff798038103d269b633813fc60c", "asInt": "3"}],
                                        "futureField": 7,
                                    },
                                    {"timeUnixNano": T0 + 1, "asDouble": "NaN"},
                                    {"timeUnixNano": str(T0 + 2), "asInt": "-9007199254740993"},
                                    {"timeUnixNano": str(T0 + 3), "asDouble": "-Infinity"},
                                    {"timeUnixNano": str(T0 + 4), "flags": 1},
                                ]
                            },
                        },
                        {
                            "name": "h",
                            "histogram": {
                                "aggregationTemporality": 2,
                                "dataPoints": [
                                    {
                                        "startTimeUnixNano": str(T0),
                                        "timeUnixNano": str(T0 + 1),
                                        "count": 2,
                                        "sum": 2,
                                        "bucketCounts": [1, "1"],
                                        "explicitBounds": [1],
                                    }
                                ],
                            },
                        },
                    ],
                }
            ],
        }
    ]
}


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_json(server, encoding):
    body = json.dumps(JSON_REQUEST).encode()
    packed = {"identity": lambda b: b, "gzip": gzip.compress, "zstd": zstandard.compress}[encoding](body)
    answer = server.post("/v1/metrics", packed, Content_Type="application/json", Content_Encoding=encoding)
    assert (answer.status, answer.headers["Content-Type"], answer.data) == (200, "application/json", b"{}")
    (run,) = server.get("/api/v1/runs", project="json")["runs"]
    (series,) = server.get(f"/api/v1/runs/{run['id']}/series", metric="g")["series"]
    assert series["value"] == [10.0, "NaN", -9007199254740993, "-Infinity"]
    assert series["time"] == [T0, T0 + 1, T0 + 2, T0 + 3]
    (point,) = server.get(f"/api/v1/runs/{run['id']}/histograms", metric="h", x="time")["points"]
    assert (point["count"], point["bounds"], point["counts"]) == (2, [1.0], [1, 1])
    details = server.get(f"/api/v1/runs/{run['id']}")
    assert details["environment"]["n"] == 9007199254740993
    assert details["environment"]["list"] == [True, 1.5]


def test_logs_in_json_and_partial_success(server_on_each):
    server = server_on_each
    record = {
        "timeUnixNano": str(T0),
        "eventName": "hello",
        "body": {"stringValue": "hi"},
        "traceId": "00",
        "spanId": "z",
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "jsonlogs"}}]}
    long = {"timeUnixNano": str(T0), "eventName": "n" * 2000}
    document = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record, long]}]}]}
    answer = server.post("/v1/logs", json.dumps(document).encode(), Content_Type="application/json; charset=utf-8")
    assert answer.status == 200
    partial = json.loads(answer.data)["partialSuccess"]
    assert partial["rejectedLogRecords"] == "1"
    assert "name" in partial["errorMessage"]
    (run,) = server.get("/api/v1/runs", project="jsonlogs")["runs"]
    (event,) = server.get(f"/api/v1/runs/{run['id']}/events")["events"]
    assert (event["name"], event["body"], event["time"]) == ("hello", "hi", str(T0))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"resourceMetrics": 3}',
        b'{"resourceMetrics": [3]}',
        b'{"resourceMetrics": [{"resource": {"attributes": [{"key": "\\ud800"}]}}]}',
        b'{"resourceMetrics":' + b"[" * 100_000,
        b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"gauge": {"dataPoints": [{"timeUnixNano": -1}]}}]}]}]}',
        b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"gauge": {"dataPoints": [{"asInt": "1e99"}]}}]}]}]}',
    ],
)
def test_json_that_is_none(server, body):
    answer = server.post("/v1/metrics", body, Content_Type="application/json")
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/json")
    status = json.loads(answer.data)
    assert status["code"] == 3
    assert "ExportMetricsServiceRequest" in status["message"]


def test_errors_in_json(server):
    for headers, http, code in (
        ({"Content_Encoding": "br"}, 415, 3),
        ({"Tensormeter_Batch_Id": "x" * 201}, 400, 3),
        ({"Origin": "https://evil.example"}, 403, 7),
    ):
        answer = server.post("/v1/metrics", b"{}", Content_Type="application/json", **headers)
        assert (answer.status, json.loads(answer.data)["code"]) == (http, code)
    assert server.post("/v1/metrics", b"", Content_Type="application/json").data == b"{}"


@pytest.mark.parametrize("known_size", [True, False])
def test_a_zstd_bomb_is_refused(server, known_size):
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=known_size)
    bomb = compressor.compress(bytes(65 << 20))
    assert len(bomb) < 100_000
    answer = server.post("/v1/metrics", bomb, Content_Encoding="zstd")
    assert answer.status == 413
    frames = zstandard.compress(b"") + zstandard.compress(b"")
    assert server.post("/v1/metrics", frames, Content_Encoding="zstd").status == 200


def test_points_in_planes_are_decoded_within_limits(server, make):
    times = u64(*range(T0, T0 + 100))
    body = encode_metrics([Batch(make.resource("planes"), [Gauge("v", times, f64(*range(100)))])])
    planes = split_planes(body)
    answer = server.post("/v1/metrics", zstandard.compress(planes), Content_Encoding=PLANES)
    assert answer.status == 200
    assert PLANES in answer.headers["Accept-Encoding"]
    (metric,) = server.get("/api/v1/runs/planes/metrics")["metrics"]
    assert metric["points"] == 100
    for damaged in (b"", planes, zstandard.compress(planes[:-1]), zstandard.compress(b"\xff" * 100)):
        assert server.post("/v1/metrics", damaged, Content_Encoding=PLANES).status == 400
    # A million points of 60 KB each, of which only the first is sent.
    bomb = struct.pack("<IIIHHH", 1, 0, 1_000_000, 60_000, 10, 30) + bytes(60_000 + 16_000_000)
    assert server.post("/v1/metrics", zstandard.compress(bomb), Content_Encoding=PLANES).status == 413
    assert server.post("/v1/metrics", zstandard.compress(bytes(65 << 20)), Content_Encoding=PLANES).status == 413


def test_the_exporter_of_a_run_sends_planes(server, make):
    exporter = ExperimentExporter(ExporterConfig(endpoint=server.url, token=None, timeout=30.0))
    values = np.random.default_rng(0).random(200)
    for number, part in enumerate((values[:100], values[100:])):
        times = u64(*range(T0 + 100 * number, T0 + 100 * number + 100))
        body = gzip.compress(encode_metrics([Batch(make.resource("coded"), [Gauge("x", times, part)])]))
        assert isinstance(exporter.export(Request(f"coded-{number}", "metrics", body, 100)), Accepted)
    assert exporter._codings["metrics"]._accepted == {PLANES, "zstd", "gzip"}
    exporter.shutdown()
    (series,) = server.get("/api/v1/runs/coded/series", metric="x", x="time")["series"]
    assert series["value"] == values.tolist()


def test_one_name_in_several_kinds_and_scopes_keeps_all(server, make):
    times = u64(T0)
    batch = Batch(make.resource("changed"), [Gauge("v", times, f64(1)), Sum("v", times, f64(2), u64(0))])
    request = ExportMetricsServiceRequest.FromString(encode_metrics([batch]))
    other = request.resource_metrics[0].scope_metrics.add()
    other.scope.name = "another"
    other.metrics.add(name="v").gauge.data_points.add(as_double=3, time_unix_nano=T0)
    assert server.post("/v1/metrics", request.SerializeToString()).data == b""
    metrics = server.get("/api/v1/runs/changed/metrics")["metrics"]
    assert sorted((metric["kind"], metric["points"]) for metric in metrics) == [("gauge", 2), ("sum", 1)]
    lines = server.get("/api/v1/runs/changed/series", metric="v")["series"]
    assert sorted(series["value"] for series in lines) == [[1.0], [2.0], [3.0]]


def test_points_of_mixed_layouts_decode_as_protobuf_says():
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    points = metrics.add(name="v").gauge.data_points
    for i in range(20):
        point = points.add(time_unix_nano=T0 + i)
        if i % 3:
            point.as_double = i / 2
        else:
            point.as_int = i
    summed = metrics.add(name="s").sum
    summed.aggregation_temporality = 1
    for i in range(20):
        summed.data_points.add(time_unix_nano=T0 + i, start_time_unix_nano=T0, as_int=i)
    flagged = metrics.add(name="f").gauge.data_points
    for i in range(20):
        flagged.add(time_unix_nano=T0 + i, as_double=1.0, flags=1)
    several = metrics.add(name="a").gauge.data_points
    for i in range(20):
        several.add(time_unix_nano=T0 + i, as_double=i).attributes.add(key="k").value.int_value = i % 2
    (batch,) = decode_metrics(request.SerializeToString())
    decoded = [(series.name, dict(series.attributes), series.times - T0, series.values) for series in batch.series]
    by = {
        (name, str(attributes), values.dtype.kind): (times.tolist(), values.tolist())
        for name, attributes, times, values in decoded
    }
    assert by["v", "{}", "i"] == ([i for i in range(20) if i % 3 == 0], [i for i in range(20) if i % 3 == 0])
    assert by["v", "{}", "f"] == ([i for i in range(20) if i % 3], [i / 2 for i in range(20) if i % 3])
    assert by["s", "{}", "i"] == (list(range(20)), list(range(20)))
    assert by["a", "{'k': 1}", "f"] == (list(range(1, 20, 2)), [float(i) for i in range(1, 20, 2)])
    assert ("f", "{}", "f") not in by  # flagged: no recorded value
    (total,) = [series for series in batch.series if isinstance(series, Sum)]
    assert total.temporality == Temporality.DELTA
    assert not total.monotonic
    assert total.start_times.tolist() == [T0] * 20
