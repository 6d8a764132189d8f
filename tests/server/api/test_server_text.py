r"""Text that no Unicode text is: half of a surrogate pair ("\ud800"), invalid UTF-8, NUL. It is the sender's mistake wherever it comes in."""

import itertools
import json
from urllib.parse import quote, urlsplit

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

import tensormeter
from tensormeter.errors import EncodingError, UsageError
from tensormeter.otlp.document import parse_document

T0 = 1_750_000_000_000_000_000
JSON = "application/json"
ESCAPES = [r"\ud800", r"\udfff", r"\ude00\ud83d", r"a\uDBFFb", r"\u0000", r"\ufffe", r"\ud83d\ude00"]
"""The last three are text."""
RAW = [
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf5\x80\x80\x80",
    b"\xe2\x82",
    b"\x00",
    b"\x1b[31m",
    b"\xf4\x8f\xbf\xbf",
]
"""Invalid bytes, half a surrogate pair, two bytes for NUL, beyond Unicode, cut off; and three that are text."""


@pytest.fixture(scope="module")
def filled(server_on_each, make):
    server_on_each.metrics(make.rows("text", [(T0, 0, {"v": 1.0})], project="odd"))
    return server_on_each


def documents(text):
    """Requests in JSON with a text in every place of each."""
    key = f'{{"key":"{text}","value":{{"stringValue":"v"}}}}'
    value = f'{{"key":"k","value":{{"stringValue":"{text}"}}}}'
    nested = f'{{"key":"k","value":{{"kvlistValue":{{"values":[{key}]}}}}}}'
    for inner in (key, value, nested):
        yield "/v1/metrics", f'{{"resourceMetrics":[{{"resource":{{"attributes":[{inner}]}}}}]}}'
        yield "/v1/logs", f'{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"attributes":[{inner}]}}]}}]}}]}}'
    point = f'{{"timeUnixNano":"{T0}","asDouble":1}}'
    metric = f'{{"name":"{text}","unit":"{text}","gauge":{{"dataPoints":[{point}]}}}}'
    yield "/v1/metrics", f'{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{metric}]}}]}}]}}'
    yield "/v1/metrics", f'{{"{text}":1}}'
    yield "/v1/metrics", f'{{"resourceMetrics":"{text}"}}'
    yield "/v1/metrics", f'"{text}"'
    yield "/v1/logs", f'{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{"body":{{"stringValue":"{text}"}}}}]}}]}}]}}'


@pytest.mark.parametrize("escape", ESCAPES)
def test_json_requests(filled, escape):
    for path, document in documents(escape):
        answer = filled.post(path, document.encode(), Content_Type=JSON)
        wrong = escape in ESCAPES[:4]
        assert answer.status == 400 if wrong else answer.status in (200, 400), document
        assert not wrong or "surrogate" in json.loads(answer.data)["message"]


@pytest.mark.parametrize("raw", RAW)
def test_bytes_in_json_and_protobuf(filled, raw):
    for path, document in documents("TEXT"):
        assert filled.post(path, document.encode().replace(b"TEXT", raw), Content_Type=JSON).status in (200, 400)
    placeholder = "x" * len(raw)
    metrics = ExportMetricsServiceRequest()
    resource = metrics.resource_metrics.add()
    resource.resource.attributes.add(key="service.name").value.string_value = placeholder
    for name in ("m", placeholder):
        points = resource.scope_metrics.add(schema_url=placeholder).metrics.add(name=name, unit="u").gauge.data_points
        for index in range(8):
            points.add(time_unix_nano=T0 + index, as_double=1).attributes.add(key=placeholder).value.int_value = 1
    logs = ExportLogsServiceRequest()
    record = logs.resource_logs.add().scope_logs.add().log_records.add(event_name=placeholder)
    record.body.kvlist_value.values.add(key=placeholder).value.string_value = placeholder
    for path, message in (("/v1/metrics", metrics), ("/v1/logs", logs)):
        body = message.SerializeToString().replace(placeholder.encode(), raw)
        expected = 200 if raw in RAW[5:] else 400
        assert filled.post(path, body).status == expected


@pytest.mark.parametrize("raw", RAW)
def test_paths_parameters_and_headers(filled, raw):
    text = quote(raw)
    run = "/api/v1/runs/text"
    routes = [
        *(f"/api/v1/runs?{name}={text}" for name in ("filter", "sort", "fields", "project", "limit", "offset")),
        f"/api/v1/runs?filter={quote('name ~ ')}%22{text}%22",
        f"/api/v1/runs?filter={quote('name = ')}%27{text}%27",
        f"/api/v1/runs?filter=config.%60{text}%60{quote(' = 1')}",
        f"/api/v1/runs?fields=config.{text},summary.{text}&sort=config.{text}",
        *(
            f"/api/v1/runs/{text}{part}"
            for part in ("", "/metrics", "/events", "/logs", "/media/x", "/series?metric=v")
        ),
        *(f"{run}/{part}?metric={text}" for part in ("series", "ranks", "histograms", "distributions")),
        *(
            f"{run}/{part}?metric=v&{name}={text}"
            for part in ("series", "ranks", "histograms", "distributions")
            for name in ("x", "process", "start", "stop", "attempt", "limit", "max_points", "attributes", "project")
        ),
        *(f"{run}/events?{name}={text}" for name in ("name", "key", "start", "stop", "limit", "project")),
        *(f"{run}/logs?{name}={text}" for name in ("search", "process", "since", "before", "after", "stream", "rank")),
        f"{run}/media/{text}",
        f"/api/v1/metrics?runs={text}",
        f"/api/v1/stream?runs=&after={text}",
        f"/{text}",
    ]
    for route in routes:
        assert filled.http.request("GET", filled.url + route).status < 500, route
    if b"\0" not in raw:
        value = raw.decode("latin-1")
        for name in ("Authorization", "Origin", "Accept", "Content-Type", "Content-Encoding", "Tensormeter-Batch-Id"):
            answer = filled.http.request("POST", f"{filled.url}/v1/metrics", body=b"", headers={name: value})
            assert answer.status < 500, name


@pytest.mark.parametrize("escape", ESCAPES)
def test_bodies_of_the_query_api(filled, escape):
    good = {"runs": '["text"]', "metrics": '["v"]', "project": '"odd"'}
    bodies = [good | {name: f'["{escape}"]'} for name in ("runs", "metrics")]
    bodies += [
        good | {name: f'"{escape}"'} for name in ("project", "x", "start", "max_points", "process", "after", "attempt")
    ]
    bodies += [good | {"attributes": f'{{"{escape}":"v"}}'}, good | {"attributes": f'{{"k":["{escape}"]}}'}]
    for body in bodies:
        document = "{" + ",".join(f'"{name}":{value}' for name, value in body.items()) + "}"
        answer = filled.http.request("POST", f"{filled.url}/api/v1/query", body=document.encode())
        assert answer.status == 400 if escape in ESCAPES[:4] else answer.status < 500, document
    for name, value in itertools.product(("name", "notes", "group", "tags", "archived", "other"), ('"{}"', '["{}"]')):
        document = f'{{"{name}":{value.format(escape)}}}'
        answer = filled.http.request("PATCH", f"{filled.url}/api/v1/runs/text?project=odd", body=document.encode())
        assert answer.status == 400 if escape in ESCAPES[:4] else answer.status < 500, document
    filters = [f'name ~ "{escape}"', f'name = "{escape}"', f"tags has '{escape}'", f'id in ("{escape}")', f'"{escape}"']
    for text in filters:
        status, _ = filled.ask("/api/v1/runs", filter=text)
        assert status == 400 if escape in ESCAPES[:4] else status < 500, text
    status, _ = filled.ask("/api/v1/runs/text/histograms", metric="v", attributes=f'{{"{escape}":1}}')
    assert status == 400 if escape in ESCAPES[:4] else status < 500


def test_the_client_says_what_is_no_text(filled):
    with tensormeter.Client(filled.url) as client, pytest.raises(UsageError, match="surrogate"):
        list(client.runs("\udcff"))


def test_nothing_of_this_is_in_the_log(filled):
    assert filled.stderr == ""
    assert urlsplit(filled.url).scheme == "http"


@pytest.mark.parametrize(
    "text", ['"\\ud800"', '{"\\udc00": 1}', '["\\ud83d", "\\ude00"]', b'"\xff"', "[" * 9999, "1" * 5000, "", "nul"]
)
def test_a_document_is_json_and_unicode_or_refused(text):
    with pytest.raises(EncodingError):
        parse_document(text)


def test_whole_pairs_of_surrogates_are_text():
    assert parse_document(r'{"\ud83d\ude00": "\\ud800"}') == {"\N{GRINNING FACE}": "\\ud800"}
    assert parse_document(b'\xef\xbb\xbf["\xc3\xa9"]') == ["\xe9"]
