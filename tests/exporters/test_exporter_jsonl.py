"""Files in the OTLP file format: every request can be read from them once, also after kills."""

import gzip
import json
import math
import os

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.errors import EncodingError
from tensormeter.exporter import Accepted, Rejected, Request, Retry
from tensormeter.otlp.json_lines import decode_line, encode_line
from tensormeter_exporters.jsonl import JsonLinesExporter


def lines(folder, signal):
    return [line for path in sorted(folder.glob(f"{signal}-*.jsonl")) for line in path.read_bytes().splitlines()]


def test_lines_are_otlp_json_and_lossless(make, config, tmp_path):
    values = [0.1, math.nan, math.inf, -math.inf, -0.0]
    series = [
        *make.rows({2**53 + index: {"loss": value} for index, value in enumerate(values)}),
        make.gauge("big", [make.T0], [2**63 - 1]),
        make.histogram("h", make.T0),
        make.exponential_histogram("e", make.T0),
        make.counter("tokens", [make.T0], [3.0]),
    ]
    metrics, logs = make.logged(1, series), make.logs(2, make.start({"lr": 1e-3, "name": "ü\n"}))
    exporter = JsonLinesExporter(config(directory=str(tmp_path / "out")))
    assert exporter.export(metrics) == Accepted()
    assert exporter.export(logs) == Accepted()
    (metric_line,), (log_line,) = lines(tmp_path / "out", "metrics"), lines(tmp_path / "out", "logs")
    for line, request in ((metric_line, metrics), (log_line, logs)):
        assert decode_line(line) == (request.signal, gzip.decompress(request.body), request.items)
    document = json.loads(metric_line)
    (scope,) = document["resourceMetrics"][0]["scopeMetrics"]
    loss = next(metric for metric in scope["metrics"] if metric["name"] == "loss")
    assert [point["asDouble"] for point in loss["gauge"]["dataPoints"]] == [0.1, "NaN", "Infinity", "-Infinity", -0.0]
    histogram = next(metric for metric in scope["metrics"] if metric["name"] == "h")
    assert histogram["histogram"]["aggregationTemporality"] == 1


def test_ids_are_hexadecimal():
    message = ExportLogsServiceRequest()
    record = message.resource_logs.add().scope_logs.add().log_records.add()
    record.trace_id, record.span_id = bytes(range(16)), bytes(range(8))
    record.attributes.add(key="traceId").value.string_value = "not an id"
    line = encode_line("logs", message.SerializeToString())
    shown = json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert shown["traceId"] == bytes(range(16)).hex()
    assert shown["spanId"] == bytes(range(8)).hex()
    assert decode_line(line)[1] == message.SerializeToString()


def test_lines_of_other_senders_are_read():
    line = b"""{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"m","sum":{"aggregationTemporality":2,
        "isMonotonic":true,"dataPoints":[{"timeUnixNano":1544712660300000000,"asInt":"7","newField":1}]}}]}]}]}"""
    signal, body, items = decode_line(line.replace(b"\n", b""))
    metric = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics[0]
    assert (signal, items) == ("metrics", 1)
    assert metric.sum.data_points[0].as_int == 7
    assert metric.sum.is_monotonic


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{}", b"nonsense", b'{"resourceSpans":[]}', b'{"resourceMetrics":7}', b'{"resourceLogs":[{"scopeLogs":3}]}',
     b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"xyz"}]}]}]}', b"[" * 100_000],
)  # fmt: skip
def test_lines_that_are_not_otlp_are_refused(line):
    with pytest.raises(EncodingError):
        decode_line(line)


def test_files_are_rotated(make, config, tmp_path):
    exporter = JsonLinesExporter(config(directory=str(tmp_path), max_bytes="3000"))
    for number in range(1, 21):
        exporter.export(make.logged(number, make.rows({number: {"loss": 1.0}})))
    files = sorted(tmp_path.glob("metrics-*.jsonl"))
    assert len(files) > 2
    assert all(path.stat().st_size <= 3000 for path in files)
    assert len(lines(tmp_path, "metrics")) == 20


def test_a_request_that_comes_again_is_there_once(make, config, tmp_path):
    requests = [make.logged(number, make.rows({number: {"loss": 1.0}})) for number in (1, 2, 3)]
    exporter = JsonLinesExporter(config(directory=str(tmp_path)))
    for request in requests[:2]:
        exporter.export(request)
    again = JsonLinesExporter(config(directory=str(tmp_path)))  # killed before delivery knew
    again.export(requests[1])
    again.export(requests[2])
    assert [decode_line(line)[1] for line in lines(tmp_path, "metrics")] == [
        gzip.decompress(item.body) for item in requests
    ]


@pytest.mark.parametrize("same", [True, False])
def test_half_a_line_is_cut_off(make, config, tmp_path, same):
    first, second, third = (make.logged(number, make.rows({number: {"loss": 1.0}})) for number in (1, 2, 3))
    exporter = JsonLinesExporter(config(directory=str(tmp_path)))
    exporter.export(first)
    exporter.export(second)
    (path,) = tmp_path.glob("metrics-*.jsonl")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 30)  # killed while it wrote the second
    following = second if same else third
    JsonLinesExporter(config(directory=str(tmp_path))).export(following)
    expected = [gzip.decompress(request.body) for request in (first, following)]
    assert [decode_line(line)[1] for line in lines(tmp_path, "metrics")] == expected


def test_failures_are_outcomes(make, config, tmp_path):
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    (tmp_path / "file").write_text("")
    assert isinstance(JsonLinesExporter(config(directory=str(tmp_path / "file"))).export(request), Retry)
    broken = Request("spool0-1", "metrics", gzip.compress(b"\xff\xff"), 1)
    assert isinstance(JsonLinesExporter(config(directory=str(tmp_path / "out"))).export(broken), Rejected)
    with pytest.raises(ValueError, match="unknown option folder; available options: directory, max_bytes"):
        JsonLinesExporter(config(folder="x"))


def test_the_state_can_name_only_its_own_files_in_the_folder(make, config, tmp_path):
    """It may have come from elsewhere with the run's folder, and what it names is cut off."""
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    out, state = tmp_path / "out", tmp_path / "state"
    out.mkdir()
    (out / "link.jsonl").symlink_to(thesis)
    state.mkdir()
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    others = [out / "metrics-1111111111111111-0001.jsonl", out / "notes.txt"]
    for path in others:
        path.write_text("years of work")
    for path in (thesis, out / "../thesis.tex", out / "link.jsonl", *others):
        document = {"id": request.id, "writer": "0" * 16, "files": [[str(path), 0, 1 << 30]]}
        (state / "appended.json").write_text(json.dumps(document))
        assert JsonLinesExporter(config(directory=str(out))).export(request) == Accepted()
    assert {path.read_text() for path in (thesis, *others)} == {"years of work"}


def test_the_state_cannot_choose_where_files_are(make, config, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "appended.json").write_text(json.dumps({"id": "", "writer": "/../../elsewhere", "files": []}))
    request = make.logged(1, make.rows({1: {"loss": 1.0}}))
    assert JsonLinesExporter(config(directory=str(tmp_path / "out"))).export(request) == Accepted()
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [tmp_path / "out"]


def test_the_default_folder_is_for_this_user_alone(make, config, tmp_path, monkeypatch):
    """The user has not chosen it. A folder that the user chose, and the files in it, follow the umask."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = os.umask(0)
    try:
        for options in ({}, {"directory": str(tmp_path / "chosen")}):
            exporter = JsonLinesExporter(config(**options))
            assert exporter.export(make.logged(1, make.rows({1: {"loss": 1.0}}))) == Accepted()
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("data", "data/tensormeter/otlp", "chosen")}
    assert modes == {"data": 0o700, "data/tensormeter/otlp": 0o700, "chosen": 0o777}
    files = {path.parent.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.jsonl")}
    assert files == {"otlp": 0o600, "chosen": 0o666}
