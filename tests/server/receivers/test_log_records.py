"""Log records keep what their sender says of them: severity, trace and span, scope, the time at which they were observed."""

import json

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tensormeter.client import Client
from tensormeter.otlp.batch import Event, Scope
from tensormeter.otlp.decode import decode_events
from tensormeter.otlp.encode import encode_events

T0 = 1_750_000_000_000_000_000
TRACE = "5b8efff798038103d269b633813fc60c"
SPAN = "eee19b7ec3c1b174"


def record(**fields):
    return {"timeUnixNano": str(T0), "eventName": "restart", "body": {"stringValue": "it broke"}} | fields


def send(server, service, *records, scope=None):
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scoped = {"logRecords": list(records)} | ({"scope": scope} if scope else {})
    body = json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scoped]}]}).encode()
    assert server.post("/v1/logs", body, Content_Type="application/json").status == 200
    (run,) = Client(server.url).runs(service)
    return run


def test_a_record_keeps_severity_ids_and_scope(server_on_each):
    sent = record(
        severityNumber=17, severityText="Fatal!", traceId=TRACE, spanId=SPAN, flags=1, observedTimeUnixNano=str(T0 + 5)
    )
    scope = {"name": "lib.a", "version": "2.1", "attributes": [{"key": "k", "value": {"stringValue": "v"}}]}
    run = send(server_on_each, "web", sent, sent, scope=scope)
    (event,) = run.events("restart")
    assert (event.severity_number, event.severity_text) == (17, "Fatal!")
    assert (event.trace_id, event.span_id, event.flags) == (TRACE, SPAN, 1)
    assert (event.time, event.observed_time) == (T0, T0 + 5)
    assert event.scope == {"name": "lib.a", "version": "2.1", "attributes": {"k": "v"}}
    assert event.body == "it broke"


def test_records_that_differ_in_severity_or_span_are_two(server_on_each):
    other = "0000000000000001"
    run = send(
        server_on_each,
        "twice",
        record(severityNumber=9),
        record(severityNumber=17),
        record(spanId=SPAN),
        record(spanId=other),
    )
    assert {(event.severity_number, event.span_id) for event in run.events("restart")} == {
        (9, ""),
        (17, ""),
        (0, SPAN),
        (0, other),
    }


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), TRACE),
        ("W47/95gDgQPSabYzgT/GDA==", TRACE),
        ("", ""),
        ("not an id", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_ids_in_json_are_hexadecimal_or_base64(server, sent, kept):
    run = send(server, f"ids-{sent}", record(traceId=sent))
    assert [event.trace_id for event in run.events("restart")] == [kept]


def test_a_record_without_any_of_it(server):
    run = send(server, "bare", record())
    (event,) = run.events("restart")
    assert (event.severity_number, event.severity_text, event.trace_id, event.scope) == (0, "", "", {})
    assert event.observed_time is None


def sent(*events):
    (resource_logs,) = ExportLogsServiceRequest.FromString(encode_events({}, events)).resource_logs
    return [(scoped.scope, log_record) for scoped in resource_logs.scope_logs for log_record in scoped.log_records]


@pytest.mark.parametrize(("level", "number"), [("INFO", 9), ("WARN", 13), ("ERROR", 17)])
def test_an_alert_goes_out_with_the_severity_of_its_level(level, number):
    ((scope, record),) = sent(Event("tensormeter.alert", T0, {"title": "t", "text": "", "level": level}))
    assert (record.severity_number, record.severity_text) == (number, level)
    assert scope.name == "tensormeter"
    assert scope.version


@pytest.mark.parametrize(
    ("state", "level"), [("finished", "INFO"), ("failed", "ERROR"), ("crashed", "ERROR"), ("preempted", "INFO")]
)
def test_a_run_that_fails_ends_with_an_error(state, level):
    ((_, record),) = sent(Event("tensormeter.run.end", T0, {"state": state, "message": ""}))
    assert record.severity_text == level


def test_every_other_record_of_ours_is_information():
    assert [
        log_record.severity_number for _, log_record in sent(Event("tensormeter.run.start", T0, {}), Event("x", T0))
    ] == [9, 9]


def test_what_is_decoded_is_encoded_the_same():
    """So a relay changes nothing."""
    scope = Scope("lib.a", "2.1", "https://example.org/schema", {"k": "v"})
    first = Event(
        "a", T0, "text", {"b": 1}, severity_number=3, severity_text="t", trace_id=TRACE, span_id=SPAN, flags=1,
        observed_time=T0 + 1, scope=scope,
    )  # fmt: skip
    bare = Event("b", T0, None, scope=Scope(""), observed_time=T0)
    ((_, events),) = decode_events(encode_events({}, [first, bare]))
    assert events == [first, bare]
