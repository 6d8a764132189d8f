"""Checks that must hold for any bytes that a client may send. Each raises if it fails; `fuzz.py` and a test feed them."""

import gzip
import json
from collections.abc import Iterator

import numpy as np
import zstandard
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from starlette.exceptions import HTTPException

from tensormeter.errors import EncodingError
from tensormeter.otlp import decode, elements
from tensormeter.otlp.content_codings import CODINGS
from tensormeter.otlp.json import events_from_json, metrics_from_json
from tensormeter.server.api import responses
from tensormeter.server.query.points.downsampling import sample
from tensormeter.server.query.points.histograms import decode_distribution
from tensormeter.server.receivers.request_body import decompress
from tensormeter.server.store.models.canonical_json import canonical_json, json_value
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.points import Blobs, Column
from tensormeter.server.store.rules.ingest_series import arrivals_of
from tensormeter.server.store.rules.media import MediaError, take_media
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.points.segments import encode_segment, segment_capacity, segment_points

T0 = 1_750_000_000_000_000_000
LIMIT = 1 << 16


def check_metrics(body: bytes) -> None:
    """Our decoder says what protobuf says, or refuses what protobuf or the walk refuses; and all of it can be stored and shown."""
    try:
        request = ExportMetricsServiceRequest.FromString(body)
    except DecodeError:
        request = None
    try:
        batches = decode.decode_metrics(body)
    except EncodingError:
        assert request is None or _has_group(body)
        return
    assert request is not None
    expected = [
        series
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for series in decode._series(metric, decode.scope_of(scope))
    ]
    assert _rows(series for batch in batches for series in batch.series) == _rows(expected)
    assert [batch.resource for batch in batches] == [
        decode.attributes(resource.resource.attributes) for resource in request.resource_metrics
    ] or _has_nan(body)
    arrivals, rejections = arrivals_of(batches)
    stored = sum(len(arrival.points) for arrival in arrivals)
    assert stored + rejections.total() == sum(batch.points for batch in batches)
    for arrival in arrivals:
        _check_column(arrival.kind, arrival.points.distinct())


def _has_group(body: bytes) -> bool:
    """Whether the walk that counts elements finds a group, which OTLP does not have."""
    try:
        elements.check_metrics(body)
    except EncodingError as error:
        return "wire type" in str(error)
    return False


def encode(document: object) -> None:
    """Encode a document as the API does, which would write NaN as null: it must have become text before."""
    assert json.loads(responses.encode(document)) == json.loads(json.dumps(document, allow_nan=False))


def check_logs(body: bytes) -> None:
    """A log record that is understood can be stored and shown."""
    try:
        resources = decode.decode_events(body)
    except EncodingError:
        return
    for attributes, events in resources:
        canonical_json(attributes)
        for event in events:
            try:
                kept, _ = take_media(event.body)
            except MediaError:
                continue
            encode(json.loads(canonical_json(kept)))
            encode(json.loads(canonical_json(event.attributes)))


def check_json(body: bytes) -> None:
    """JSON is refused, or becomes protobuf that is understood."""
    for transcode, decode_ in ((metrics_from_json, decode.decode_metrics), (events_from_json, decode.decode_events)):
        try:
            payload = transcode(body)
        except EncodingError:
            continue
        decode_(payload)


def check_json_of(body: bytes) -> None:
    """A protobuf request says the same in JSON."""
    for transcode, kind in (
        (metrics_from_json, ExportMetricsServiceRequest),
        (events_from_json, ExportLogsServiceRequest),
    ):
        try:
            text = json_format.MessageToJson(kind.FromString(body))
        except (DecodeError, json_format.SerializeToJsonError, ValueError):
            continue  # no such message, or one that protobuf cannot say in JSON
        document = json.loads(text, object_hook=_without_ids)
        again = json.loads(
            json_format.MessageToJson(kind.FromString(transcode(text.encode()))), object_hook=_without_ids
        )
        assert again == document


def check_body(body: bytes) -> None:
    """All contents, under every compression: an answer of 400 or 413, or no more than the limit."""
    for encoding in CODINGS:
        try:
            size = len(decompress(body, encoding, LIMIT))
        except HTTPException as error:
            if error.status_code not in (400, 413):
                raise
        else:
            assert size <= LIMIT


def check_elements(body: bytes) -> None:
    """The walk that counts elements refuses nothing that protobuf accepts, but for groups, which OTLP does not have."""
    for walk, kind in (
        (elements.check_metrics, ExportMetricsServiceRequest),
        (elements.check_logs, ExportLogsServiceRequest),
    ):
        try:
            walk(body)
        except EncodingError as error:
            if "wire type" in str(error):
                continue
            try:
                kind.FromString(body)
            except DecodeError:
                continue
            raise


CHECKS = {
    "elements": check_elements,
    "metrics": check_metrics,
    "logs": check_logs,
    "json": check_json,
    "json_of": check_json_of,
    "body": check_body,
}


def check_input(name: str, body: bytes) -> None:
    """Run the check of this name."""
    CHECKS[name](body)


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with."""
    metrics, logs = _metrics().SerializeToString(), _logs().SerializeToString()
    match name:
        case "metrics":
            return [metrics]
        case "logs":
            return [logs]
        case "json":
            return [json_format.MessageToJson(message, indent=None).encode() for message in (_metrics(), _logs())]
        case "json_of" | "elements":
            return [metrics, logs]
        case _:
            written = [metrics, b"", bytes(LIMIT), bytes(2 * LIMIT)]
            packed = [gzip.compress(part) for part in written] + [zstandard.compress(part) for part in written]
            stream = zstandard.ZstdCompressor(write_content_size=False)
            return [*packed, stream.compress(metrics), packed[0] + packed[1], packed[4] + packed[5]]


def _metrics() -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for key, value in (("service.name", "fuzz"), ("tensormeter.run.id", "fuzz")):
        resource.resource.attributes.add(key=key).value.string_value = value
    scope = resource.scope_metrics.add(schema_url="s")
    scope.scope.name, scope.scope.version = "other", "1"
    loss = scope.metrics.add(name="loss", unit="1", description="d").gauge.data_points
    for i in range(8):
        loss.add(time_unix_nano=T0 + i, as_double=i / 7)
        loss[-1].attributes.add(key="k").value.string_value = "v"
    mixed = scope.metrics.add(name="mixed" * 20).gauge.data_points
    for i in range(8):
        mixed.add(time_unix_nano=T0 + i, **({"as_int": i} if i % 2 else {"as_double": i / 7}))
    series = scope.metrics.add(name="series").gauge.data_points
    for i in range(60):
        series.add(time_unix_nano=T0 + i, as_double=i / 7).attributes.add(key="k").value.string_value = "v" * (i % 3)
    total = scope.metrics.add(name="total").sum
    total.aggregation_temporality, total.is_monotonic = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA, True
    for i in range(8):
        total.data_points.add(start_time_unix_nano=T0, time_unix_nano=T0 + i, as_int=i)
    total.data_points[0].exemplars.add(time_unix_nano=1, as_double=2, span_id=b"12345678", trace_id=bytes(16))
    histogram = scope.metrics.add(name="h").histogram
    for i in range(2):
        histogram.data_points.add(
            time_unix_nano=T0 + i, count=3, sum=4, min=1, max=2, explicit_bounds=[1, 2], bucket_counts=[1, 2, 0]
        )
    exponential = scope.metrics.add(name="e").exponential_histogram
    point = exponential.data_points.add(time_unix_nano=T0, count=9, scale=3, zero_count=1, zero_threshold=1e-9)
    point.positive.offset, point.negative.offset = 5, -3
    point.positive.bucket_counts.extend([1, 2, 3])
    point.negative.bucket_counts.extend([2])
    summary = scope.metrics.add(name="s").summary.data_points.add(time_unix_nano=T0, count=2, sum=3)
    summary.quantile_values.add(quantile=0.5, value=1)
    return request


def _logs() -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="tensormeter.run.id").value.string_value = "fuzz"
    record = resource.scope_logs.add().log_records.add(time_unix_nano=T0, event_name="tensormeter.run.start")
    record.attributes.add(key="tensormeter.step").value.int_value = 3
    values = record.body.kvlist_value.values.add(key="config").value.array_value.values
    values.add(int_value=-1)
    values.add(double_value=0.5)
    values.add(bool_value=True)
    values.add(bytes_value=b"\xff\x00")
    values.add().kvlist_value.values.add(key="content_type").value.string_value = "image/png"
    return request


def _check_column(kind_text: str, points: Column) -> None:
    kind = parse_kind(kind_text)
    for first in range(0, len(points), segment_capacity(points)):
        piece = points[first : first + segment_capacity(points)]
        again = segment_points(encode_segment(piece))
        assert all(np.array_equal(*pair) for pair in zip(again.arrays(), piece.arrays(), strict=True))
    if not isinstance(points, Blobs):
        totals = Totals.of(points)
        encode(json_value([totals.last, totals.mean, totals.minimum]))
        assert len(sample(points.floats(), 4)) <= 4
        return
    for blob in points.blobs:
        point = decode_distribution(kind, blob)
        encode(json_value([point.count, point.sum, point.min, point.max, point.bounds, point.counts, point.quantiles]))
        assert len(point.counts) == len(point.bounds) + 1 or not (point.counts or point.bounds)
        assert all(a < b for a, b in zip(point.bounds, point.bounds[1:], strict=False))


def _rows(series: Iterator[object] | list[object]) -> list[str]:
    """Every point with everything about it, to the bit, in no order."""
    rows = []
    for line in series:
        fields = {key: value for key, value in vars(line).items() if key not in ("positive", "negative")}
        columns = {key: value for key, value in fields.items() if isinstance(value, np.ndarray) and key not in _SHARED}
        about = {
            key: repr(value.tolist() if isinstance(value, np.ndarray) else value)
            for key, value in fields.items()
            if key not in columns
        }
        for side in ("positive", "negative"):
            if hasattr(line, side):
                buckets = getattr(line, side)
                columns[side] = [(int(o), c.tolist()) for o, c in zip(buckets.offsets, buckets.counts, strict=True)]
        for i in range(len(line.times)):
            point = {
                key: column[i].tobytes() if isinstance(column, np.ndarray) else column[i]
                for key, column in columns.items()
            }
            kinds = {key: column.dtype.str for key, column in columns.items() if isinstance(column, np.ndarray)}
            rows.append(repr((type(line).__name__, about, point, kinds)))
    return sorted(rows)


_SHARED = ("bounds", "quantiles")


def _has_nan(body: bytes) -> bool:
    """Attributes with a NaN in them differ from themselves."""
    return "nan" in repr(ExportMetricsServiceRequest.FromString(body))


def _without_ids(item: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in item.items() if key not in ("traceId", "spanId")}
