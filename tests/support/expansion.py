"""Small bodies that expand into many things, and what a request with one costs: `PYTHONPATH=tests python -m support.expansion [--seeds N]`.

The command starts a server, sends it each body, and ends with status 1 at the first one that costs more than 5 s of processor time
or 300 MB of memory, or is answered by anything but 200, 400 or 413.

`bodies` repeats every field of OTLP's messages, at every level, in both formats, until the body has a given size; `allowed` are
bodies just below each bound. `Meter` measures processor time and peak memory of a server process around one request.
"""

import argparse
import gzip
import itertools
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import zstandard
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

from support.servers import Server
from tensormeter.otlp.batch import Batch, Gauge
from tensormeter.otlp.elements import COLUMN, MAX_ELEMENTS
from tensormeter.otlp.encode import encode_metrics

MAX_SECONDS = 5.0
"""Processor time that one request may take."""

MAX_BYTES = 300_000_000
"""Memory that one request may take."""

T0 = 1_750_000_000_000_000_000
PROTOBUF, JSON = "application/x-protobuf", "application/json"
ROOTS = {"/v1/metrics": ExportMetricsServiceRequest.DESCRIPTOR, "/v1/logs": ExportLogsServiceRequest.DESCRIPTOR}
DEPTH = 9
"""Fields from the root to the deepest repeated one: attributes of a point, and two levels of values in them."""


@dataclass(frozen=True)
class Body:
    """A request's body; `name` says what is repeated in it."""

    name: str
    path: str
    content_type: str
    data: bytes


def bodies(size: int, content_types: tuple[str, ...] = (PROTOBUF, JSON)) -> Iterator[Body]:
    """Bodies of about `size` bytes. Each repeats one field of one kind of message."""
    for path, root in ROOTS.items():
        for fields in _paths(root):
            names = ".".join(field.name for field in fields)
            if PROTOBUF in content_types:
                yield Body(f"protobuf {names}", path, PROTOBUF, _protobuf(fields, size))
            if JSON in content_types and fields[-1].is_repeated:
                yield Body(f"json {names}", path, JSON, _json(fields, size))


def packed(body: Body, encoding: str) -> bytes:
    """The body in a content encoding."""
    match encoding:
        case "gzip":
            return gzip.compress(body.data, 6)
        case "members":
            step = max(len(body.data) // 100, 1)
            return b"".join(gzip.compress(body.data[at : at + step]) for at in range(0, len(body.data), step))
        case "zstd":
            return zstandard.compress(body.data, 3)
        case _:
            return body.data


ENCODINGS = {"gzip": "gzip", "members": "gzip", "zstd": "zstd", "identity": "identity"}
"""The results of `packed`, and their names in a request."""

AS_IS = "as is"
"""For a body that is gzip already."""


@dataclass(frozen=True)
class Cost:
    """The cost of a request: its status, seconds of processor time, and bytes of memory above those used before it."""

    status: int
    seconds: float
    peak: int
    message: bytes


class Meter:
    """Measures one request at a time to one server."""

    def __init__(self, server) -> None:
        self._server = server
        self._process = psutil.Process(server.process.pid)

    def send(self, body: Body, encoding: str) -> Cost:
        data = packed(body, encoding)
        kernel = Path(f"/proc/{self._process.pid}")
        (kernel / "clear_refs").write_text("5")  # the peak begins again
        self._server.http.clear()  # making a body may take longer than an idle connection lives
        before, memory = self.seconds(), self._peak(kernel)
        answer = self._server.post(
            body.path, data, Content_Type=body.content_type, Content_Encoding=ENCODINGS.get(encoding, "gzip")
        )
        return Cost(answer.status, self.seconds() - before, self._peak(kernel) - memory, answer.data)

    def seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _peak(self, kernel: Path) -> int:
        peak = re.search(r"VmHWM:\s+(\d+) kB", (kernel / "status").read_text())
        assert peak is not None
        return int(peak[1]) << 10


def random_body(seed: int, size: int) -> Body:
    """A body of several fields that are repeated, in several messages, one within another."""
    choose = random.Random(seed)
    path, root = choose.choice([*ROOTS.items()])
    paths = [*_paths(root)]
    parts, names = [], []
    for _ in range(choose.randint(1, 6)):
        fields = choose.choice(paths)
        share = int(size * choose.random() ** 2) + 1
        filler = choose.choice((b"", b"x" * 3, bytes(8), b"\xff" * 5))
        parts.append(_protobuf(fields, share, filler, at=choose.randrange(len(fields))))
        names.append(".".join(field.name for field in fields))
    return Body(f"random {seed}: {', '.join(names)}", path, PROTOBUF, b"".join(parts)[: 64 << 20])


def _paths(root: Descriptor) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Every way from a request down to a field, each message but for nested values once in each way."""
    seen: set[tuple[str, str]] = set()

    def go(message: Descriptor, before: tuple[FieldDescriptor, ...]) -> Iterator[tuple[FieldDescriptor, ...]]:
        for field in message.fields:
            now = (*before, field)
            key = field.full_name, before[-1].full_name if before else ""
            if key in seen or len(now) > DEPTH:
                continue
            seen.add(key)
            yield now
            if field.message_type is not None:
                yield from go(field.message_type, now)

    yield from go(root, ())


def _protobuf(fields: tuple[FieldDescriptor, ...], size: int, filler: bytes = b"", at: int | None = None) -> bytes:
    """The last field again and again, or the one at an index with what is below it in each."""
    index = len(fields) - 1 if at is None else at
    inner = _smallest(fields[-1], filler)
    for field in reversed(fields[index:-1]):
        inner = _wrapped(field, inner)
    repeated = inner * (size // len(inner) + 1)
    for field in reversed(fields[:index]):
        repeated = _wrapped(field, repeated)
    return repeated


def _smallest(field: FieldDescriptor, filler: bytes) -> bytes:
    number = field.number << 3
    if field.message_type is not None or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        text = b"" if field.message_type is not None else filler
        if field.type == FieldDescriptor.TYPE_STRING:
            text = text.replace(b"\xff", b"y")
        return varint(number | 2) + varint(len(text)) + text
    if field.type in (FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64, FieldDescriptor.TYPE_DOUBLE):
        return varint(number | 1) + bytes(8)
    if field.type in (FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_FLOAT):
        return varint(number | 5) + bytes(4)
    return varint(number) + b"\0"


def _wrapped(field: FieldDescriptor, content: bytes) -> bytes:
    return _wrapped_message(field.number, content)


def _wrapped_message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    return bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80,)) + varint(number >> 7)


def _json(fields: tuple[FieldDescriptor, ...], size: int) -> bytes:
    last = fields[-1]
    item = "{}" if last.message_type is not None else "0"
    text = "[" + ",".join([item] * (size // (len(item) + 1) + 1)) + "]"
    document = f'{{"{last.json_name}":{text}}}'
    for field in reversed(fields[:-1]):
        document = f'{{"{field.json_name}":{f"[{document}]" if field.is_repeated else document}}}'
    return document.encode()


def mixed_series(series: int, points: int) -> bytes:
    """A request of one gauge in which points of many series, told apart by an attribute, take turns."""
    point = NumberDataPoint(time_unix_nano=T0, as_double=1.5)
    point.attributes.add(key="series").value.string_value = "0000"
    encoded_point = _wrapped_message(1, point.SerializeToString())
    table = np.tile(np.frombuffer(encoded_point, np.uint8), series * points).reshape(points, series, -1)
    place = encoded_point.index(T0.to_bytes(8, "little"))
    times = np.arange(T0, T0 + points, dtype="<u8").view(np.uint8).reshape(points, 1, 8)
    table[:, :, place : place + 8] = times
    digits = np.frombuffer(b"".join(b"%04d" % number for number in range(series)), np.uint8).reshape(1, series, 4)
    table[:, :, encoded_point.index(b"0000") : encoded_point.index(b"0000") + 4] = digits
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().resource.attributes.add(key="service.name").value.string_value = "mixed"
    metric = _wrapped_message(2, _wrapped_message(2, b"\x0a\x05mixed" + _wrapped_message(5, table.tobytes())))
    return _wrapped_message(1, request.resource_metrics[0].SerializeToString() + metric)


def allowed() -> Iterator[Body]:
    """Bodies that each have nearly as many items of one kind as a request may."""
    runs = (f"allowed-{number}" for number in itertools.count())
    most = {name: bound - 10 for name, bound in MAX_ELEMENTS.items()}

    def metrics() -> ExportMetricsServiceRequest:
        return ExportMetricsServiceRequest()

    def resource(request, *pairs, run=None):
        run = run or next(runs)
        added = (
            request.resource_metrics.add()
            if isinstance(request, ExportMetricsServiceRequest)
            else request.resource_logs.add()
        )
        for key, value in (("service.name", "expansion"), ("tensormeter.run.id", run), *pairs):
            added.resource.attributes.add(key=key).value.string_value = value
        return added

    def body(name: str, request) -> Body:
        path = "/v1/metrics" if isinstance(request, ExportMetricsServiceRequest) else "/v1/logs"
        return Body(name, path, PROTOBUF, request.SerializeToString())

    request = metrics()
    for index in range(most["resources"]):
        point = (
            resource(request, ("service.instance.id", str(index)), run="processes")
            .scope_metrics.add()
            .metrics.add(name="m")
            .gauge
        )
        point.data_points.add(time_unix_nano=T0, as_double=1)
    yield body("processes with a point each", request)

    request = metrics()
    for index in range(most["resources"]):
        added = request.resource_metrics.add()
        for key, value in (("service.name", "expansion"), ("tensormeter.run.id", f"run-{index}")):
            added.resource.attributes.add(key=key).value.string_value = value
        added.scope_metrics.add().metrics.add(name="m").gauge.data_points.add(time_unix_nano=T0, as_double=1)
    yield body("runs with a point each", request)

    request = metrics()
    scope = resource(request).scope_metrics.add()
    for index in range(most["metrics"]):
        scope.metrics.add(name=f"metric/{index}", unit="s", description="d" * 20).gauge.data_points.add(
            time_unix_nano=T0, as_int=1
        )
    yield body("metrics with a point each", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "attributes")).scope_metrics.add()
    points = scope.metrics.add(name="attributes").sum.data_points
    for index in range(most["separate points"]):
        point = points.add(time_unix_nano=T0, as_int=1)
        for key in ("a", "b", "c"):
            point.attributes.add(key=key).value.string_value = f"value {index}"
    yield body("series by attributes", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "many attributes")).scope_metrics.add()
    points = scope.metrics.add(name="attributes").sum.data_points
    for index in range(most["fields"] // 404):
        point = points.add(time_unix_nano=T0, as_int=index)
        for key in range(100):
            point.attributes.add(key=f"key {key}").value.string_value = f"value {index}"
    yield body("points with a hundred attributes", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "histograms")).scope_metrics.add()
    points = scope.metrics.add(name="histogram").histogram.data_points
    for index in range(most["separate points"]):
        points.add(time_unix_nano=T0 + index, count=3, sum=1, bucket_counts=[1] * 17, explicit_bounds=[*range(16)])
    yield body("histograms", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "shapes")).scope_metrics.add()
    points = scope.metrics.add(name="histogram").histogram.data_points
    for index in range(most["separate points"]):
        points.add(time_unix_nano=T0 + index, count=3, sum=1, bucket_counts=[1] * 2, explicit_bounds=[index])
    yield body("histograms of different bounds", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "exponential")).scope_metrics.add()
    points = scope.metrics.add(name="exponential").exponential_histogram.data_points
    for index in range(12_000):
        point = points.add(time_unix_nano=T0 + index, count=3, sum=1, scale=3)
        point.positive.bucket_counts.extend([1] * 160)
    yield body("exponential histograms", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "summaries")).scope_metrics.add()
    points = scope.metrics.add(name="summary").summary.data_points
    for index in range(most["separate points"]):
        point = points.add(time_unix_nano=T0 + index, count=3, sum=1)
        for quantile in range(4):
            point.quantile_values.add(quantile=quantile / 4, value=index)
    yield body("summaries", request)

    request = metrics()
    scope = resource(request, ("service.instance.id", "wide scope")).scope_metrics.add()
    for index in range(100_000):
        scope.scope.attributes.add(key=f"key {index}").value.int_value = index
    for index in range(20_000):
        scope.metrics.add(name=f"metric/{index}").gauge.data_points.add(time_unix_nano=T0, as_int=1)
    yield body("a scope of many attributes", request)

    times = np.arange(T0, T0 + 1_000_000, dtype=np.uint64)
    resource_of = {"service.name": "expansion", "tensormeter.run.id": "columns"}
    column = encode_metrics([Batch(resource_of, [Gauge("column", times, times.astype(np.float64))])])
    yield Body("a million points of one series", "/v1/metrics", PROTOBUF, column)
    yield Body("a million points of a thousand series in one metric", "/v1/metrics", PROTOBUF, mixed_series(1000, 1000))
    yield Body("64 MiB of points", "/v1/metrics", PROTOBUF, column * 3)

    resource_of = {"service.name": "expansion", "tensormeter.run.id": "many columns"}
    columns = [
        Gauge(f"metric/{index}", times[:60], np.arange(60.0)) for index in range(most["separate points"] // COLUMN)
    ]
    yield Body(
        "a million points of many series", "/v1/metrics", PROTOBUF, encode_metrics([Batch(resource_of, columns)])
    )

    request = ExportLogsServiceRequest()
    records = resource(request).scope_logs.add().log_records
    for index in range(most["log records"]):
        record = records.add(time_unix_nano=T0 + index, event_name="event")
        record.body.string_value = f"line {index}"
        for key in ("a", "b", "c"):
            record.attributes.add(key=key).value.string_value = f"value {index}"
    yield body("log records", request)

    request = ExportLogsServiceRequest()
    records = resource(request).scope_logs.add().log_records
    for index in range(most["log records"]):
        record = records.add(time_unix_nano=T0 + index, event_name="tensormeter.run.start")
        record.body.kvlist_value.values.add(key="config").value.kvlist_value.values.add(key="k").value.int_value = index
    yield body("starts of a run", request)

    request = ExportLogsServiceRequest()
    for index in range(most["resources"]):
        added = resource(request, ("service.instance.id", str(index)), run="starts")
        added.scope_logs.add().log_records.add(time_unix_nano=T0 + index, event_name="tensormeter.run.start")
    yield body("starts of processes", request)

    request = ExportLogsServiceRequest()
    values = (
        resource(request).scope_logs.add().log_records.add(time_unix_nano=T0, event_name="e").body.array_value.values
    )
    for index in range(most["fields"] // 2 - 10):
        values.add(int_value=index)
    yield body("a list of many values", request)

    request = ExportLogsServiceRequest()
    records = resource(request).scope_logs.add().log_records
    for index in range(3):
        record = records.add(time_unix_nano=T0 + index, event_name="image")
        for key, content in (
            ("content_type", b"image/png"),
            ("data", b"\x89PNG\r\n\x1a\n" + random.Random(index).randbytes(13 << 20)),
        ):
            value = record.body.kvlist_value.values.add(key=key).value
            if key == "data":
                value.bytes_value = content
            else:
                value.string_value = content.decode()
    yield body("39 MiB of images", request)

    request = ExportLogsServiceRequest()
    record = resource(request).scope_logs.add().log_records.add(time_unix_nano=T0, event_name="text")
    record.body.string_value = "a" * (62 << 20) + "\U0001f600"
    yield body("a text of 62 MiB in wide characters", request)

    request = metrics()
    metric = resource(request).scope_metrics.add().metrics.add(name="n" * (62 << 20) + "\U0001f600")
    metric.gauge.data_points.add(time_unix_nano=T0, as_double=1)
    yield body("a name of 62 MiB in wide characters", request)

    item = {"timeUnixNano": str(T0), "asDouble": 1.5, "attributes": [{"key": "k", "value": {"stringValue": "v"}}]}
    points = [item | {"timeUnixNano": str(T0 + index)} for index in range(20_000)]
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "m", "gauge": {"dataPoints": points}}]}]}]}
    yield Body("json points", "/v1/metrics", JSON, json.dumps(document).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="random bodies")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    given = parser.parse_args()

    def sweep() -> Iterator[tuple[Body, str]]:
        for size in (300_000, 1_400_000, 2_900_000, 16 << 20):
            for body in bodies(size):
                yield body, "gzip"
        for seed in range(given.seed, given.seed + given.seeds):
            choose = random.Random(seed)
            body = random_body(seed, choose.choice((1 << 20, 3 << 20, 16 << 20, 60 << 20)))
            yield body, choose.choice([*ENCODINGS])

    def measure(server, body: Body, encoding: str) -> None:
        cost = Meter(server).send(body, encoding)
        if cost.seconds > MAX_SECONDS or cost.peak > MAX_BYTES or cost.status not in (200, 400, 413):
            Path("expansion-body").write_bytes(body.data)
            sys.exit(f"{body.name}, {encoding}: {cost}; the body is in expansion-body")
        costs.append(cost)
        if cost.seconds == max(past_cost.seconds for past_cost in costs) or cost.peak == max(
            past_cost.peak for past_cost in costs
        ):
            print(f"{len(costs)}: {body.name}, {encoding}: {cost.seconds:.2f} s, {cost.peak / 1e6:.0f} MB", flush=True)

    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, body in enumerate(allowed()):  # each on a server that folds nothing of earlier ones meanwhile
            server = Server(Path(folder) / str(number))
            try:
                measure(server, body, "gzip")
            finally:
                server.kill()
        server = Server(Path(folder) / "data")
        try:
            for body, encoding in sweep():
                measure(server, body, encoding)
        finally:
            server.stop()
    most = max(cost.seconds for cost in costs), max(cost.peak for cost in costs) / 1e6
    print(f"{len(costs)} bodies: at most {most[0]:.2f} s and {most[1]:.0f} MB")


if __name__ == "__main__":
    main()
