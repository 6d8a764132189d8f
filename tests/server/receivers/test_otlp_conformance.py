"""Senders that we did not write: OpenTelemetry's SDK for JavaScript, and requests of the shapes of OTLP's own examples."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

JAVASCRIPT = Path(__file__).parent / "javascript"
T0 = 1_544_712_660_300_000_000
SECOND = 10**9


@pytest.fixture(scope="module")
def node():
    """Node, with the packages of the lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node here")
    if (
        int(subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0])
        < 20
    ):
        pytest.skip("the SDK needs Node 20")
    mark, lock = JAVASCRIPT / "node_modules" / ".package-lock.json", JAVASCRIPT / "package-lock.json"
    if not mark.exists() or mark.stat().st_mtime < lock.stat().st_mtime:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install the SDK: {done.stderr.strip()[-300:]}")
    return "node"


def requests_of(first, second, temporality):
    """The amounts of both rounds, as a sum reports them."""
    return [first, second] if temporality == "delta" else [first, first + second]


@pytest.mark.parametrize(("encoding", "temporality"), [("json", "delta"), ("protobuf", "cumulative")])
def test_the_sdk_for_javascript(server, node, encoding, temporality):
    command = [node, str(JAVASCRIPT / "export.mjs"), server.url, encoding]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = server.get("/api/v1/runs", project="javascript")["runs"]
    documents = [server.get(f"/api/v1/runs/{run['id']}") for run in runs]
    (run,) = [document for document in documents if document["processes"][0]["id"] == encoding]
    resource = {"service.name": "javascript", "service.instance.id": encoding, "host.name": "a", "ranks": [0, 1]}
    assert run["environment"] == resource
    path = f"/api/v1/runs/{run['id']}"
    listed = {metric["name"]: metric for metric in server.get(f"{path}/metrics")["metrics"]}
    a, b = {"route": "/a", "code": 200, "cached": False, "weights": [0.5, 1.5]}, {"route": "/b"}
    # JavaScript's SDK never gives deltas of what can go down.
    numbers = {
        "requests": (
            "sum",
            "{request}",
            temporality,
            True,
            [(a, requests_of(2, 4, temporality)), (b, requests_of(40, 80, temporality))],
        ),
        "connections": ("sum", "", "cumulative", False, [({}, [-3, -9])]),
        "temperature": ("gauge", "Cel", None, None, [({}, [20.25, 40.5])]),
        "bytes": ("sum", "By", temporality, True, [({}, requests_of(1234.5, 0.0, temporality))]),
    }
    for name, (kind, unit, adds_up, monotonic, expected) in numbers.items():
        about = [listed[name][key] for key in ("kind", "unit", "temporality", "monotonic", "points")]
        assert about == [kind, unit, adds_up, monotonic, 2 * len(expected)]
        series = server.get(f"{path}/series", metric=name)["series"]
        assert [(line["attributes"], line["value"]) for line in series] == expected
        assert all(line["time"] == sorted(set(line["time"])) for line in series)
    assert listed["requests"]["description"] == "how many"

    histogram = server.get(f"{path}/histograms", metric="durations", x="time")
    assert (histogram["kind"], listed["durations"]["temporality"], histogram["total"]) == ("histogram", temporality, 2)
    first, second = histogram["points"]
    assert (first["bounds"], first["counts"]) == ([0.1, 1.0, 10.0], [1, 2, 1, 1])
    assert (first["count"], first["min"], first["max"], first["sum"]) == (5, 0.05, 50.0, pytest.approx(56.05))
    assert second["counts"] == ([1, 2, 1, 1] if temporality == "delta" else [2, 4, 2, 2])
    assert (second["count"], second["max"]) == ((5, 100.0) if temporality == "delta" else (10, 100.0))

    exponential = server.get(f"{path}/histograms", metric="exponential", x="time")
    first, second = exponential["points"]
    assert (exponential["kind"], exponential["total"]) == ("exponential_histogram", 2)
    assert (first["count"], first["sum"], first["min"], first["max"], sum(first["counts"])) == (
        5,
        1007.0,
        0.0,
        1000.0,
        5,
    )
    for value in (1, 2, 4, 1000):  # each in the bucket whose bounds are around it
        assert any(
            low < value <= high and count
            for low, high, count in zip(first["bounds"], first["bounds"][1:], first["counts"][1:-1], strict=True)
        )
    assert second["count"] == (5 if temporality == "delta" else 10)

    (plain,) = server.get(f"{path}/logs")["lines"]
    assert (plain["time"], plain["text"]) == ("1750000001000000000", "plain")
    (checkpoint,) = server.get(f"{path}/events")["events"]
    assert (checkpoint["time"], checkpoint["name"]) == ("1750000000000000005", "checkpoint")
    assert checkpoint["attributes"] == {"tensormeter.key": "model"}
    assert checkpoint["body"] == {"text": "ü", "deep": [1, 2.5, True, None, {"bytes": "/wA="}]}


def attribute(key, kind, value):
    return {"key": key, "value": {kind: value}}


TIMES = {"startTimeUnixNano": str(T0), "timeUnixNano": str(T0 + SECOND)}
ATTRIBUTES = {"attributes": [attribute("my.attribute", "stringValue", "a value")]}
RESOURCE = {
    "attributes": [
        attribute("service.name", "stringValue", "example"),
        attribute("service.instance.id", "stringValue", "shapes"),
    ]
}
SCOPE = {
    "name": "my.library",
    "version": "1.0.0",
    "attributes": [attribute("scope.attribute", "stringValue", "a value")],
}
METRICS = {
    "resourceMetrics": [
        {
            "resource": RESOURCE,
            "scopeMetrics": [
                {
                    "scope": SCOPE,
                    "metrics": [
                        {
                            "name": "my.counter",
                            "unit": "1",
                            "description": "a counter",
                            "sum": {
                                "aggregationTemporality": 1,
                                "isMonotonic": True,
                                "dataPoints": [{"asDouble": 5, **TIMES, **ATTRIBUTES}],
                            },
                        },
                        {
                            "name": "my.gauge",
                            "unit": "1",
                            "gauge": {
                                "dataPoints": [
                                    {"asInt": "9007199254740993", "timeUnixNano": TIMES["timeUnixNano"], **ATTRIBUTES}
                                ]
                            },
                        },
                        {
                            "name": "my.histogram",
                            "histogram": {
                                "aggregationTemporality": 1,
                                "dataPoints": [
                                    {
                                        "count": 2,
                                        "sum": 2,
                                        "bucketCounts": [1, 1],
                                        "explicitBounds": [1],
                                        "min": 0,
                                        "max": 2,
                                        **TIMES,
                                    }
                                ],
                            },
                        },
                        {
                            "name": "my.exponential",
                            "exponentialHistogram": {
                                "aggregationTemporality": 1,
                                "dataPoints": [
                                    {
                                        "count": 3,
                                        "sum": 10,
                                        "scale": 0,
                                        "zeroCount": 1,
                                        "positive": {"offset": 1, "bucketCounts": ["0", "2"]},
                                        "min": 0,
                                        "max": 5,
                                        "zeroThreshold": 0,
                                        **TIMES,
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
LOGS = {
    "resourceLogs": [
        {
            "resource": RESOURCE,
            "scopeLogs": [
                {
                    "scope": SCOPE,
                    "logRecords": [
                        {
                            "timeUnixNano": str(T0),
                            "observedTimeUnixNano": str(T0 + 1),
                            "severityNumber": 10,
                            "severityText": "Information",
                            "traceId": "5B8EFFF798038103D269B633813FC60C",
                            "spanId": "EEE19B7EC3C1B174",
                            "body": {"stringValue": "a log record"},
                            "attributes": [
                                attribute("string", "stringValue", "some"),
                                attribute("boolean", "boolValue", True),
                                attribute("int", "intValue", "10"),
                                attribute("double", "doubleValue", 637.704),
                                attribute(
                                    "array",
                                    "arrayValue",
                                    {"values": [{"stringValue": "many"}, {"stringValue": "values"}]},
                                ),
                                attribute(
                                    "map",
                                    "kvlistValue",
                                    {"values": [attribute("some.key", "stringValue", "some value")]},
                                ),
                            ],
                        }
                    ],
                }
            ],
        }
    ]
}


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_requests_of_the_shapes_of_the_examples(start, encoding):
    server = start()
    if encoding == "json":
        answer = server.post(
            "/v1/metrics", json.dumps(METRICS).encode(), Content_Type="application/json; charset=utf-8"
        )
        assert (answer.status, answer.data, answer.headers["Content-Type"]) == (200, b"{}", "application/json")
    else:
        body = json_format.ParseDict(METRICS, ExportMetricsServiceRequest()).SerializeToString()
        answer = server.post("/v1/metrics", body)
        assert (answer.status, answer.data, answer.headers["Content-Type"]) == (200, b"", "application/x-protobuf")
    answer = server.post("/v1/logs", json.dumps(LOGS).encode(), Content_Type="application/json")
    assert (answer.status, answer.data) == (200, b"{}")
    (run,) = server.get("/api/v1/runs", project="example")["runs"]
    path = f"/api/v1/runs/{run['id']}"
    metrics = server.get(f"{path}/metrics")["metrics"]
    about = [
        (metric["name"], metric["kind"], metric["unit"], metric["temporality"], metric["monotonic"], metric["points"])
        for metric in metrics
    ]
    assert about == [
        ("my.counter", "sum", "1", "delta", True, 1),
        ("my.exponential", "exponential_histogram", "", "delta", None, 1),
        ("my.gauge", "gauge", "1", None, None, 1),
        ("my.histogram", "histogram", "", "delta", None, 1),
    ]
    for name, value in (("my.counter", 5.0), ("my.gauge", 9007199254740993)):
        (series,) = server.get(f"{path}/series", metric=name)["series"]
        assert (series["time"], series["value"]) == ([T0 + SECOND], [value])
        assert series["attributes"] == {"my.attribute": "a value"}
    (point,) = server.get(f"{path}/histograms", metric="my.histogram", x="time")["points"]
    assert (point["count"], point["sum"], point["min"], point["max"]) == (2, 2.0, 0.0, 2.0)
    assert (point["bounds"], point["counts"]) == ([1.0], [1, 1])
    (point,) = server.get(f"{path}/histograms", metric="my.exponential", x="time")["points"]
    assert (point["count"], point["bounds"][-4:], point["counts"]) == (3, [0.0, 2.0, 4.0, 8.0], [0, 1, 0, 0, 2, 0])
    (line,) = server.get(f"{path}/logs")["lines"]
    assert (line["time"], line["text"]) == (str(T0), "a log record")
    assert (line["severity"], line["severity_text"]) == (10, "Information")
    assert (line["trace_id"], line["span_id"]) == ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")
    assert line["observed_time"] == str(T0 + 1)
    assert line["attributes"] == {
        "string": "some",
        "boolean": True,
        "int": 10,
        "double": 637.704,
        "array": ["many", "values"],
        "map": {"some.key": "some value"},
    }
