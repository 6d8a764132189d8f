"""Golden answers of the query API: every route, for a small fixed set of runs.

`TENSORMETER_RECORD=1` writes the answers of this server into `api_answers.json`. The git diff then shows what changed.
"""

import json
import os
import re
import tracemalloc
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import numpy as np
import pytest

from tensormeter.otlp.batch import (
    STEP_METRIC,
    Batch,
    Buckets,
    Event,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Scope,
    Summary,
    Temporality,
)
from tensormeter.otlp.media import Image
from tensormeter.server.api import request_schemas, schemas
from tensormeter.server.api.openapi import openapi_document
from tensormeter.server.api.params import invalid
from tensormeter.server.api.responses import encode

GOLDEN = Path(__file__).with_name("api_answers.json")
COLUMNS = "application/vnd.tensormeter.columns"
S = 10**9
T0 = 1_750_000_000 * S
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 24
TYPES = {"f64": "<f8", "i64": "<i8", "u8": "u1"}


def times(*seconds):
    return np.array([T0 + second * S for second in seconds], np.uint64)


def u64(*values):
    return np.array(values, np.uint64)


def distributions():
    at, counts = times(10, 11), u64(3, 4)
    sums, lows, highs = np.array([6.0, 10.0]), np.array([1.0, 1.0]), np.array([3.0, np.nan])
    return [
        Histogram("sizes", at, at, counts, sums, lows, highs, np.array([1.0, 2.0]), np.array([u64(1, 1, 1), u64(2, 1, 1)])),
        ExponentialHistogram(
            "grads", at, at, counts, sums, -lows, highs,
            scales=np.array([0, 0]), zero_counts=u64(1, 0), zero_thresholds=np.array([0.0, 1e-20]),
            positive=Buckets(np.array([0, 1]), [u64(1, 1), u64(3)]),
            negative=Buckets(np.array([0, 0]), [u64(), u64(1)]),
            attributes={"layer": "fc\n"}, temporality=Temporality.DELTA,
        ),
        Summary("quantiles", at, at, counts, sums, np.array([0.5, 1]), np.array([[2.0, 3.0], [2.0, np.inf]])),
    ]  # fmt: skip


def other_library(project):
    """A gauge of the same name from another library, with gaps; and a delta sum."""
    values = [("1.5", 0), ("NaN", 1), ("", 2), ("2.5", 3)]
    points = [
        {"timeUnixNano": str(T0 + second * S), **({"asDouble": value} if value else {"flags": 1})}
        for value, second in values
    ]
    total = {"aggregationTemporality": 1, "isMonotonic": True}
    amounts = [{"timeUnixNano": str(T0 + 5 * S), "asInt": "7"}]
    names = {"service.name": project, "service.instance.id": "p0", "tensormeter.run.id": "curves"}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in names.items()]
    attributes.append({"key": "tensormeter.rank", "value": {"intValue": "0"}})
    metrics = [
        {"name": "loss", "unit": "nat", "description": "of a library", "gauge": {"dataPoints": points}},
        {"name": "tokens", "unit": "1", "sum": total | {"dataPoints": amounts}},
    ]
    scoped = [{"scope": {"name": "lib.other", "version": "2"}, "metrics": metrics}]
    return json.dumps({"resourceMetrics": [{"resource": {"attributes": attributes}, "scopeMetrics": scoped}]}).encode()


@pytest.fixture(scope="module")
def filled(server, make):
    if server.clickhouse is not None:
        pytest.skip("numbers of events and cursors are those of SQLite")
    config = {
        "lr": 1e-3, "big": 2**62, "opt": {"name": "adam", "betas": [0.9, 0.999]}, "a.b": None, "text": 'é\n"\\ \U0001f600',
        "odd": [float("nan"), float("-inf")], "raw": b"\0\xff", "on": True,
    }  # fmt: skip
    first = make.resource("curves", "p0", **{"host.name": "n0", "process.command": "train.py"}) | {
        "tensormeter.rank": 0
    }
    second = make.resource("curves", "p1") | {"tensormeter.rank": 1, "tensormeter.world_size": 2}
    resumed = first | {"service.instance.id": "p2", "tensormeter.run.attempt": 2, "tensormeter.launch.id": "launch"}
    start = {"config": config, "tags": ["base", "wide"], "group": "sweep", "job_type": "train", "notes": "first"}
    server.events(first, Event("tensormeter.run.start", T0, start))
    server.events(second, Event("tensormeter.run.start", T0 + 1, {}))
    steps = Gauge(STEP_METRIC, times(0, 1, 2, 3), np.arange(4))
    values = np.array([1.0, np.nan, np.inf, -0.0])
    for resource, factor in ((first, 1), (second, 3)):
        counted = Gauge("count", times(0, 1, 2), np.array([1, -(2**62), 5]) * 1)
        rows = [steps, Gauge("loss", times(0, 1, 2, 3, 4), np.append(values * factor, 1e300)), counted]
        assert server.metrics(Batch(resource, rows)).status == 200
    printed = {"log.iostream": "stdout"}
    logged = Event(
        "", T0 + 3 * S, "slow \x1b[31mstep\x1b[0m", {"code.line.number": 7}, severity_number=13, severity_text="WARNING",
        trace_id="5b8efff798038103d269b633813fc60c", span_id="eee19b7ec3c1b174", flags=1, observed_time=T0 + 4 * S,
        scope=Scope("lib.a", "2.1", attributes={"k": "v"}),
    )  # fmt: skip
    server.events(first, Event("", T0 + S, "epoch 1", printed), logged, Event("", T0 + 2 * S, {"b": [1, None]}))
    server.events(second, Event("", T0 + S, "epoch 1", printed, scope=Scope("")))
    again = [Gauge(STEP_METRIC, times(20, 21), np.array([2, 3])), Gauge("loss", times(20, 21), np.array([0.25, 1e-9]))]
    server.events(resumed, Event("tensormeter.run.start", T0 + 20 * S, {"config": config | {"lr": 1}}))
    assert server.metrics(Batch(resumed, [*again, *distributions()])).status == 200
    assert server.post("/v1/metrics", other_library("demo"), Content_Type="application/json").status == 200
    scope = Scope("lib.a", "2.1", attributes={"k": "v"})
    alert = Event(
        "tensormeter.alert", T0 + 9 * S, {"title": "hot", "level": [1, 2.5, None]}, {"tensormeter.key": "gpu"},
        severity_number=17, severity_text="ERROR", trace_id="5b8efff798038103d269b633813fc60c", span_id="eee19b7ec3c1b174",
        flags=1, observed_time=T0 + 10 * S, scope=scope,
    )  # fmt: skip
    server.events(resumed, alert, Image("sample", PNG, "image/png", 2, 3).event(T0 + 8 * S, 2))
    server.events(resumed, Event("tensormeter.run.end", T0 + 30 * S, {"state": "failed", "message": "out of memory"}))
    for project in ("demo", "other"):
        server.metrics(make.rows("twice", [(T0, 0, {"v": 1.0})], project=project))
    server.metrics(make.rows("gone", [(T0, 0, {"v": 1.0})], project="other"))
    server.metrics(Batch(make.resource("stepless", project="other"), [Gauge("load", times(0, 1), np.array([1, 2]))]))
    return server


RUN = "/api/v1/runs/curves"


def query(**document):
    return "POST", "/api/v1/query", {}, {"runs": ["curves"], "metrics": ["loss", "count", STEP_METRIC]} | document


def series(**document):
    return "POST", f"{RUN}/series", {}, {"metrics": ["loss", "count", STEP_METRIC]} | document


def get(path, **parameters):
    return "GET", path, parameters, None


REQUESTS = [
    get("/api/v1/projects"),
    get("/api/v1/runs"),
    get("/api/v1/runs", project="other", sort="id", limit=1, offset=1),
    get("/api/v1/runs", filter="id = 'curves'", fields="config.lr,config.opt.name,config.a.b,summary.loss"),
    get("/api/v1/runs", filter="id = 'curves'", fields="config"),
    get("/api/v1/runs", filter="id = 'curves'", fields=""),
    get(RUN),
    get("/api/v1/runs/stepless"),
    get("/api/v1/runs/twice", project="other"),
    get(f"{RUN}/attempt", process="p3", rank=0, world_size=2, launch="next"),
    get(f"{RUN}/attempt", process="p3", rank=0, world_size=2, launch="next", resume="true", least=5),
    get(f"{RUN}/attempt", process="p3", number=7),
    get("/api/v1/runs/unknown/attempt", resume="true"),
    get(f"{RUN}/metrics"),
    get("/api/v1/metrics", runs="curves,other/twice,stepless"),
    get(f"{RUN}/events"),
    get(f"{RUN}/events", limit=2),
    get(f"{RUN}/events", name="tensormeter.a*", key="gpu", max_body=3),
    get(f"{RUN}/events", start=T0 + 9 * S, stop=T0 + 21 * S),
    get(f"{RUN}/logs"),
    get(f"{RUN}/logs", limit=2, max_text=4),
    get(f"{RUN}/logs", limit=1, before=f"{T0 + 3 * S}-0"),
    get(f"{RUN}/logs", limit=1, after=f"{T0 + S}-1", stream="stdout"),
    get(f"{RUN}/logs", rank=1, search="EPOCH"),
    get(f"{RUN}/logs", severity=13, process="p0", start=T0, stop=T0 + 4 * S),
    get(f"{RUN}/logs", after=f"{T0 + S}-9", before=f"{T0 + 3 * S}-0"),
    get(f"{RUN}/logs", since="2"),
    get(f"{RUN}/logs", since="unknown", rank=7),
    get("/api/v1/runs/stepless/logs"),
    query(),
    query(max_points=0, x="time", process="all", project="demo", attempt="all"),
    query(max_points=4, x="relative", start=0, stop=3.5, attempt=1),
    query(runs=["demo/curves", "other/twice", "curves"], metrics=["loss", "v"], x="metric:count"),
    query(scope="", unit="", kind="gauge", temporality=None, process="p2", attempt=2.0, max_points=12.0),
    query(attributes={"layer": "fc\n"}, x=None, after=None, attempt=None, start=None),
    query(after="x"),
    get(f"{RUN}/series", metric="loss"),
    get(f"{RUN}/series", metric="loss", x="time", start=T0, stop=T0 + 3 * S, process="p0", attempt="all"),
    get(f"{RUN}/series", metric="count", attempt=1, limit=1000),
    get(f"{RUN}/series", metric="tokens"),
    get(f"{RUN}/series", metric="unknown"),
    series(metrics=["unknown", "tokens", "loss", "count", "loss", "tensormeter.step"]),
    series(metrics=["loss", "count"], x="time", start=T0, stop=T0 + 3 * S, process="p0", attempt="all", limit=1000),
    series(metrics=["unknown"]),
    get(f"{RUN}/ranks", metric="loss"),
    get(f"{RUN}/ranks", metric="loss", x="time", attempt="all", max_points=2, scope=""),
    get(f"{RUN}/ranks", metric="loss", start="0.5", stop="+3.", unit="nat"),
    get(f"{RUN}/ranks", metric="unknown"),
    get(f"{RUN}/histograms", metric="sizes", x="time"),
    get(f"{RUN}/histograms", metric="grads", attributes='{"layer":"fc\\n"}', x="relative"),
    get(f"{RUN}/histograms", metric="quantiles", kind="summary", max_points=2, x="time", attributes=""),
    get(f"{RUN}/histograms", metric="sizes", attributes='{"layer":1}'),
    *(get(f"{RUN}/distributions", metric=name) for name in ("sizes", "grads", "quantiles", "unknown")),
    get(f"{RUN}/distributions", metric="sizes", process="p2", start=T0, stop=T0 + 11 * S, limit=10, attempt=2),
    *(get(f"{RUN}/distributions", metric=name, exact="true") for name in ("sizes", "grads", "quantiles")),
    (
        "PATCH",
        "/api/v1/runs/stepless",
        {},
        {"name": "mine", "tags": ["x", "y", "x"], "notes": "<b>", "group": "", "job_type": "eval", "archived": True},
    ),
    ("PATCH", "/api/v1/runs/stepless", {"project": "other"}, {"name": None, "tags": None, "unknown": 1}),
    ("DELETE", "/api/v1/runs/gone", {}, None),
    ("DELETE", "/api/v1/runs/gone", {}, None),
]
"""Requests with an answer: method, path, parameters and body."""

LONG = "x" * 70_000
MISTAKES = [
    get("/api/v1/nothing"),
    *(get("/api/v1/runs", **{name: text}) for name in ("limit", "offset") for text in ("", "-1", "1001.5", "null", "9" * 30, "x" * 90)),
    get("/api/v1/runs", limit=0),
    get("/api/v1/runs", limit=1001),
    get("/api/v1/runs", fields=",".join(map(str, range(1001)))),
    get("/api/v1/runs", fields="." * 101),
    get("/api/v1/runs", filter="id ="),
    get("/api/v1/runs", sort="nothing"),
    get("/api/v1/runs/twice"),
    get("/api/v1/runs/unknown"),
    get("/api/v1/metrics"),
    get("/api/v1/metrics", runs=",,"),
    get("/api/v1/metrics", runs=",".join(map(str, range(201)))),
    get("/api/v1/metrics", runs="unknown"),
    get("/api/v1/stream"),
    get(f"{RUN}/attempt", process="x" * 1025),
    get(f"{RUN}/attempt", launch="x" * 1025),
    *(get(f"{RUN}/attempt", **{name: text}) for name in ("rank", "world_size", "least", "number") for text in ("-1", "x", 2**32, "9" * 20)),
    get(f"{RUN}/attempt", least=0),
    *(get(f"{RUN}/attempt", resume=text) for text in ("", "1", "True", "x" * 60)),
    *(get(f"{RUN}/events", **{name: text}) for name in ("start", "stop", "max_body", "limit") for text in ("1.5", "null", 2**63, -(2**63) - 1)),
    get(f"{RUN}/events", limit=10_001),
    *(get(f"{RUN}/events", before=text) for text in ("", "x", "1-", "-1", "1-1-1", f"{2**63}-1", "1-" + "1" * 60)),
    *(get(f"{RUN}/logs", **{name: text}) for name in ("before", "after") for text in ("", "x", "1-", f"{2**63}-1")),
    *(get(f"{RUN}/logs", **{name: text}) for name in ("limit", "rank", "severity", "max_text", "start") for text in ("", "-1.5", 2**63)),
    get(f"{RUN}/logs", limit=10_001),
    get(f"{RUN}/logs", stream="stdin"),
    get(f"{RUN}/logs", search="x" * 1025),
    get("/api/v1/runs/unknown/logs"),
    get(f"{RUN}/media/unknown"),
    *(get(f"{RUN}/{part}") for part in ("series", "ranks", "histograms", "distributions")),
    *(get(f"{RUN}/{part}", metric="") for part in ("series", "ranks", "histograms", "distributions")),
    *(get(f"{RUN}/{part}", metric="loss", attempt=text) for part in ("series", "ranks", "histograms", "distributions") for text in (0, "x", "null", 10**9)),
    *(get(f"{RUN}/{part}", metric="loss", limit=text) for part in ("series", "distributions") for text in (0, 10**8, "x")),
    *(get(f"{RUN}/{part}", metric="loss", max_points=text) for part in ("ranks", "histograms") for text in (0, 10**8, "x")),
    *(get(f"{RUN}/{part}", metric="loss", x=text) for part in ("series", "ranks", "histograms") for text in ("epoch", "", "metric:")),
    *(get(f"{RUN}/{part}", metric="loss", start=text) for part in ("ranks", "histograms") for text in ("", "nan", "inf", "1e30", "1_0", "x" * 60, "null", " 1")),
    get(f"{RUN}/histograms", metric="sizes", max_points=1),
    *(get(f"{RUN}/histograms", metric="sizes", attributes=text) for text in ("x", "null", "[]", '"x"', '{"\\ud800":1}')),
    *(query(**{name: value}) for name in ("runs", "metrics") for value in (None, [], "x", [1], ["x"] * 201, {"x": 1})),
    *(query(**{name: value}) for name in ("project", "process", "after", "x", "scope", "unit", "kind", "temporality") for value in (1, True, ["x"])),
    *(series(metrics=value) for value in (None, [], "x", [1], ["x"] * 1001, {"x": 1})),
    *(series(**{name: value}) for name in ("process", "x", "start", "stop", "limit", "attempt") for value in (True, ["x"], 1.5, 10**30)),
    series(limit=1),
    ("POST", "/api/v1/runs/unknown/series", {}, {"metrics": ["loss"]}),
    *(query(max_points=value) for value in (None, 3, -1, True, 12.5, "12", 10**9, 1e300)),
    *(query(**{name: value}) for name in ("start", "stop") for value in (True, "ten", [], 1e30, -1e30, 10**400)),
    *(query(attempt=value) for value in (0, -1, True, 1.5, "x", [], 10**9)),
    *(query(attributes=value) for value in ([], "x", 1)),
    query(start="5"),
    query(attempt="2"),
    query(attempt=""),
    query(x="epoch"),
    query(x="metric:"),
    query(runs=["unknown"]),
    ("POST", "/api/v1/query", {}, []),
    ("POST", "/api/v1/query", {}, b"{"),
    ("POST", "/api/v1/query", {}, b"{}"),
    ("POST", "/api/v1/query", {}, b""),
    ("POST", "/api/v1/query", {}, b'{"runs":["a"],"metrics":["m"],"start":NaN}'),
    ("POST", "/api/v1/query", {}, b"[" * 9999),
    ("GET", "/api/v1/query", {}, None),
    *(("PATCH", "/api/v1/runs/stepless", {}, {name: value}) for name in ("name", "notes", "group", "job_type") for value in (1, True, [], {}, LONG)),
    *(("PATCH", "/api/v1/runs/stepless", {}, {"name": value}) for value in ("", "x" * 1025)),
    *(("PATCH", "/api/v1/runs/stepless", {}, {"tags": value}) for value in ("x", [1], [""], ["x" * 129], ["x"] * 101, {}, [None])),
    *(("PATCH", "/api/v1/runs/stepless", {}, {"archived": value}) for value in (1, "true", [], 0.0)),
    ("PATCH", "/api/v1/runs/unknown", {}, {}),
    ("PATCH", "/api/v1/runs/stepless", {}, [1]),
]  # fmt: skip
"""Requests that must be refused."""


def ask(server, method, path, parameters, body, accept="application/json"):
    url = server.url + path + (f"?{urlencode(parameters)}" if parameters else "")
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    return server.http.request(method, url, body=data, headers={"Accept": accept})


def decoded(answer):
    """The document of an answer; arrays of a binary one stand at their places."""
    if answer.headers.get("Content-Type") != COLUMNS:
        return json.loads(answer.data, parse_constant=pytest.fail) if answer.data else None
    size = int.from_bytes(answer.data[:4], "little")

    def array(place):
        if place.keys() != {"offset", "length", "type"}:
            return place
        assert place["offset"] % 8 == 0
        values = np.frombuffer(answer.data, TYPES[place["type"]], place["length"], place["offset"])
        return [str(value) for value in values.tolist()]

    return json.loads(answer.data[4 : 4 + size], object_hook=array)


def normalised(value, key=""):
    """A document without what differs from one server to the next: its clock and its cursors."""
    if isinstance(value, dict):
        return {name: normalised(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [normalised(item, key) for item in value]
    if key == "cursor":
        return "CURSOR"
    if key == "lag" and value is not None:
        return 0.0
    if key == "last_time" and value is not None and not 0 <= int(value) - T0 < 3600 * S:
        return "0"
    return value


def named(method, path, parameters, body):
    text = "" if body is None else body.decode() if isinstance(body, bytes) else json.dumps(body)
    if len(text) > 300:
        text = f"{text[:40]}... ({len(text)} characters)"
    query_string = urlencode(parameters)
    if len(query_string) > 300:
        query_string = f"{query_string[:40]}... ({len(query_string)} characters)"
    return f"{method} {path}{'?' if query_string else ''}{query_string} {text}".strip()


def first_updates(server):
    """The stream's first events, up to its cursor."""
    with server.connect() as connection:
        connection.sendall(b"GET /api/v1/stream?runs=curves&after=0.0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = b""
        while b"event: cursor" not in text or not text.partition(b"event: cursor")[2].count(b"\n\n"):
            text += connection.recv(65536)
    lines = [line.partition(b"data: ")[2] for line in text.splitlines() if line.startswith(b"data: ")]
    return [normalised(json.loads(line)) for line in lines]


def record(server):
    answers = {}
    for wanted in REQUESTS:
        answer = ask(server, *wanted)
        name = named(*wanted)
        if name in answers:
            name += " (again)"
        answers[name] = [answer.status, normalised(decoded(answer))]
        if "/query" in wanted[1] or "/series" in wanted[1]:
            answer = ask(server, *wanted, accept=COLUMNS)
            answers[f"{name} (binary)"] = [answer.status, normalised(decoded(answer))]
    errors = {}
    for wanted in MISTAKES:
        answer = ask(server, *wanted)
        document = json.loads(answer.data)
        assert document.keys() == {"error"}, named(*wanted)
        assert document["error"].keys() == {"code", "message"}
        message = re.sub(r"(not JSON: \w+): .*", r"\1", document["error"]["message"])  # the rest is Python's
        errors[named(*wanted)] = f"{answer.status} {document['error']['code']}: {message}"
    return {"answers": answers, "stream": first_updates(server), "errors": errors}


def test_answers_are_the_golden_ones(filled):
    answers = json.loads(json.dumps(record(filled)))
    if os.environ.get("TENSORMETER_RECORD"):
        GOLDEN.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for part, expected in golden.items():
        if isinstance(expected, list):
            assert answers[part] == expected
            continue
        assert answers[part].keys() == expected.keys()
        for name, answer in expected.items():
            assert answers[part][name] == answer, name


def test_no_mistake_is_accepted():
    errors = json.loads(GOLDEN.read_text())["errors"]
    assert [name for name, answer in errors.items() if not answer.startswith("4")] == []


def test_answers_have_the_fields_that_are_described():
    """The encoder does not look at types, so this is where documents and descriptions are compared."""
    paths = openapi_document()["paths"]
    golden = json.loads(GOLDEN.read_text())
    described = set()
    for name, (status, answer) in golden["answers"].items():
        if status != 200:
            continue
        method, target, *_ = name.split()
        path = re.sub("/runs/[^/?]+", "/runs/{run_id}", target.partition("?")[0])
        content = paths[path][method.lower()]["responses"]["200"]["content"]
        document, reference = answer, content["application/json"]["schema"]["$ref"]
        if name.endswith("(binary)"):
            document, reference = with_places(answer), content[COLUMNS]["schema"]["x-header"]["$ref"]
        kind = getattr(schemas, reference.rpartition("/")[2])
        described.add(kind.__name__)
        assert json.loads(encode(msgspec.convert(document, kind))) == document, name
    assert len(described) == 17
    update, cursor = golden["stream"]
    assert json.loads(encode(msgspec.convert(update, schemas.Update))) == update
    assert json.loads(encode(msgspec.convert(cursor, schemas.Cursor))) == cursor


def with_places(answer):
    """A binary answer as its header is, with a place for each array."""
    arrays = ("x", "y", "gaps", "time", "step", "value", "stepped", "integers")
    place = {"offset": 0, "length": 0, "type": "f64"}
    series = [{key: place if key in arrays else value for key, value in line.items()} for line in answer["series"]]
    return answer | {"series": series}


def test_deeply_nested_values_are_refused(filled):
    """Python's stack may be enough to read a value, but not to show it in the message."""
    for depth in range(880, 1000, 4):
        value = b"[" * depth + b"]" * depth
        for method, path, body in (
            ("POST", "/api/v1/query", b'{"metrics":["m"],"runs":' + value + b"}"),
            ("PATCH", "/api/v1/runs/stepless", b'{"tags":' + value + b"}"),
        ):
            assert ask(filled, method, path, {}, body).status == 400, depth


def test_message_about_a_large_value_encodes_only_what_it_shows():
    """The event loop makes the message, so a megabyte of invalid JSON must not hold up other requests."""
    document = {"runs": list(range(200_000))}
    invalid("runs", request_schemas.Query, document)  # fill caches
    tracemalloc.start()
    error = invalid("runs", request_schemas.Query, document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.detail.endswith("got [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1")
    assert peak < 100_000
