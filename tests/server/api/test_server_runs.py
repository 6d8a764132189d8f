"""Runs: filters, order, changes, deletion, attempts, events, images."""

import base64
import math
import re
import zlib
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensormeter.errors import UsageError
from tensormeter.otlp.batch import Batch, Event
from tensormeter.otlp.encode import encode_events
from tensormeter.server.query.runs.filter import parse_filter

T0 = 1_750_000_000_000_000_000
SECOND = 10**9


def begin(time=0, **body):
    return Event("tensormeter.run.start", T0 + time, body)


def end(time, state="finished", **body):
    return Event("tensormeter.run.end", T0 + time, {"state": state, "message": "", **body})


@pytest.fixture(scope="module")
def sweep(server, make):
    """Six runs of a sweep."""
    for i in range(6):
        resource = make.resource(f"s{i}", project="sweep")
        config = {"lr": 10.0**-i, "opt": {"name": "adam" if i % 2 else "sgd"}, "a.b": i, "on": i > 2, "layers": [1, i]}
        server.events(resource, begin(i * SECOND, config=config, tags=["base"] if i < 2 else ["wide", f"t{i}"]))
        losses = [(T0 + i * SECOND + k, k, {"train/loss": 10.0 - i - k / 10}) for k in range(1, 11)]
        if i != 4:
            server.metrics(make.rows(f"s{i}", losses, project="sweep"))
    server.events(make.resource("s0", project="sweep"), end(9 * SECOND))
    server.events(make.resource("s1", project="sweep"), end(9 * SECOND, "preempted"))
    server.metrics(make.rows("s5", [(T0 + 60 * SECOND, 99, {"train/loss": math.nan})], project="sweep"))
    return server


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", "012345"),
        ('state = "finished"', "0"),
        ('state != "running"', "01"),
        ('state in ("finished", "preempted")', "01"),
        ("config.lr > 1e-3", "012"),
        ("config.lr <= 1e-3 and config.lr >= 0.0001", "34"),
        ('config.opt.name = "adam" or config.lr = 1', "0135"),
        ("config.a.b = 3", "3"),
        ("config.on = true", "345"),
        ("not config.on = true", "012"),
        ('config.on ~ "^true$"', "345"),
        ('config.on ~ "1"', ""),
        ("config.layers has 4", "4"),
        ("config.opt has 'name'", "012345"),
        ("config.missing = null", "012345"),
        ("config.missing != 3", "012345"),
        ("config.missing < 3", ""),
        ("summary.train/loss.min < 6", "5"),
        ("summary.train/loss.last < 7.5", "23"),
        ("summary.train/loss = null", "45"),
        ("summary.train/loss.count >= 11", "5"),
        ("summary.train/loss.last_step = 10", "0123"),
        ("summary.train/loss.mean < 8 and summary.train/loss.max > 0", "235"),
        ('tags has "base"', "01"),
        ('not (tags has "base" or tags has "t3")', "245"),
        ('id ~ "s[0-2]"', "012"),
        (r"""id ~ "^s\d$" and id ~ '5'""", "5"),
        ('name ~ "(?i)NAME OF S1"', "1"),
        ("`config.opt.name` = 'sgd'", "024"),
        ("started >= '2025-06-15T15:06:42Z'", "2345"),
        (f"started = {T0}", "0"),
        ("ended != null", "01"),
        ("duration = 9", "0"),
        ("processes = 1 and attempt = 1 and archived = false", "012345"),
        ("points > 20", "5"),
        ('config.lr = "1"', ""),
        ('id = "\'; DROP TABLE run; --"', ""),
    ],
)
def test_filter(sweep, text, numbers):
    listed = sweep.get("/api/v1/runs", project="sweep", filter=text, sort="id", fields="")
    assert "".join(run["id"][1] for run in listed["runs"]) == numbers
    assert listed["total"] == len(numbers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("state", "expected an operator (= != < <= > >= ~ in has) at position 5, got the end"),
        ("state =", "expected a value at position 7, got the end"),
        ("state = and", "expected a value at position 8, got 'and'"),
        ('state = "a" state', "expected and, or, or the end at position 12, got 'state'"),
        ("(state = 1", "closing parenthesis at position 10"),
        ("nothing = 1", "at position 0: there is no field 'nothing'"),
        ("id ~ '('", "not a regular expression at position 5"),
        ("id = %", "cannot read '%' at position 5"),
        ("started > 'yesterday'", "expected a time such as"),
        ("not " * 60 + "id = 1", "nested"),
        ("(" * 60, "nested"),
        ("id = 1 and " * 1000, "8192"),
        ("id = '", "cannot read"),
    ],
)
def test_a_filter_that_is_none(sweep, text, words):
    status, document = sweep.ask("/api/v1/runs", filter=text)
    assert (status, document["error"]["code"]) == (400, "bad_request")
    assert words in document["error"]["message"]


def test_the_fields_of_filters_are_the_documented_ones(sweep):
    text = (Path(__file__).parents[3] / "docs/api.md").read_text()
    documented = text.partition("- **Fields**: ")[2].partition("`config.KEY`")[0]
    names = sorted(re.findall(r"`(\w+)`", documented))
    message = sweep.ask("/api/v1/runs", filter="nothing = 1")[1]["error"]["message"]
    assert f"expected {', '.join(names)}, config.* or summary.*" in message
    for name in names:
        assert sweep.ask("/api/v1/runs", filter=f"{name} = null", sort=name)[0] == 200


VALUES = [None, 1, 2.5, math.nan, "text", True, ["a", 1], {"k": 1}]
WORDS = [
    *(
        "id",
        "tags",
        "config.a",
        "summary.m.min",
        "started",
        "`x y`",
        "and",
        "or",
        "not",
        "(",
        ")",
        "in",
        "has",
        "~",
        ",",
    ),
    *(
        "=",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "1",
        "-2.5e3",
        '"text"',
        "'a'",
        "true",
        "null",
        "'2026-01-01'",
        "'('",
        "%",
        "\\",
    ),
]


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_any_text_is_a_filter_or_an_error_of_one_line(text):
    try:
        condition = parse_filter(text)
    except UsageError as error:
        assert "filter: " in str(error)  # noqa: PT017
        return
    columns = {name: VALUES for field in condition.fields.values() for name in field.stored}
    rows = range(len(VALUES))
    selected = [*condition.select(columns, rows)]
    assert selected == [row for row in rows if [*condition.select(columns, [row])]]


def test_a_pattern_that_would_take_for_ever_elsewhere(sweep, make):
    sweep.metrics(make.rows("a" * 100 + "b", [(T0, 0, {"v": 1.0})], project="redos"))
    assert sweep.get("/api/v1/runs", project="redos", filter='id ~ "^(a+)+$"')["total"] == 0


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("", "543210"),
        ("started", "012345"),
        ("-summary.train/loss.last", "012354"),  # of two without a number the newest first
        ("summary.train/loss.min,id", "532104"),
        ("config.opt.name,-config.lr", "135024"),
        ("-state,id", "234510"),
        ("config.missing,-id", "543210"),
    ],
)
def test_sort(sweep, sort, order):
    listed = sweep.get("/api/v1/runs", project="sweep", sort=sort)
    assert "".join(run["id"][1] for run in listed["runs"]) == order


def test_sort_and_fields(sweep):
    status, document = sweep.ask("/api/v1/runs", sort="started,,id")
    assert (status, "comma-separated" in document["error"]["message"]) == (400, True)
    status, document = sweep.ask("/api/v1/runs", sort="nothing")
    assert (status, "'nothing'" in document["error"]["message"]) == (400, True)
    fields = "config.lr,config.opt.name,config.a.b,summary.train/loss"
    (run,) = sweep.get("/api/v1/runs", project="sweep", filter='id = "s3"', fields=fields)["runs"]
    assert run["config"] == {"lr": 1e-3, "opt": {"name": "adam"}, "a.b": 3}
    assert list(run["summary"]) == ["train/loss"]
    assert run["summary"]["train/loss"]["last_step"] == 10


def test_user_changes_survive_later_events(server, make):
    resource = make.resource("patched", project="patch")
    server.events(resource, begin(config={"a": 1}, tags=["sent"], group="g1", job_type="j1", notes="n1"))
    run = server.get("/api/v1/runs/patched")
    assert (run["tags"], run["group"], run["notes"], run["archived"]) == (["sent"], "g1", "n1", False)
    assert run["job_type"] == "j1"
    change = {
        "name": "mine",
        "tags": ["x", "y", "x"],
        "notes": "<b>",
        "group": "",
        "job_type": "eval",
        "archived": True,
        "unknown": 1,
    }
    status, run = server.send("PATCH", "/api/v1/runs/patched", change)
    assert status == 200
    server.events(resource, begin(1, config={"a": 2}, tags=["sent"], group="g2", job_type="j2", notes="n2"))
    again = server.get("/api/v1/runs/patched")
    for document in (run, again):
        shown = [document[key] for key in ("name", "tags", "notes", "group", "job_type", "archived")]
        assert shown == ["mine", ["x", "y"], "<b>", "", "eval", True]
    assert again["config"] == {"a": 2}
    assert server.get("/api/v1/runs", project="patch")["total"] == 0
    assert server.get("/api/v1/runs", project="patch", filter="archived = true")["total"] == 1
    for bad in ({"name": ""}, {"tags": "x"}, {"tags": [1]}, {"archived": 1}, {"notes": 5}, {"name": "\ud800"}, [1]):
        assert server.send("PATCH", "/api/v1/runs/patched", bad)[0] == 400
    assert server.send("PATCH", "/api/v1/runs/nothing", {})[0] == 404


def test_a_deleted_run_is_gone_until_it_starts_again(start, make):
    server = start()
    resource = make.resource("gone")
    rows = [(T0 + i, i, {"v": float(i)}) for i in range(10)]
    server.events(resource, begin(config={"first": 1}))
    server.metrics(make.rows("gone", rows))
    server.metrics(make.rows("stays", rows))
    assert server.send("DELETE", "/api/v1/runs/gone") == (204, None)
    assert server.send("DELETE", "/api/v1/runs/gone")[0] == 404
    assert [run["id"] for run in server.get("/api/v1/runs")["runs"]] == ["stays"]
    # A trainer that does not know: refused, and told so in a way that it does not try again.
    answer = server.metrics(make.rows("gone", rows), batch_id="late")
    assert (answer.status, b"deleted" in answer.data) == (200, True)
    assert b"deleted" in server.post("/v1/logs", encode_events(resource, [end(5)])).data
    assert server.ask("/api/v1/runs/gone")[0] == 404
    server.kill()
    server = start()  # the journal still has its points
    assert server.ask("/api/v1/runs/gone")[0] == 404
    far = 4_000_000_000 * SECOND - T0
    server.events(resource, begin(far, config={"second": 2}))
    assert server.metrics(make.rows("gone", rows[:3])).data == b""
    server.kill()
    server = start()  # replay must not bring back the first life's points
    run = server.get("/api/v1/runs/gone")
    assert (run["config"], run["points"]) == ({"second": 2}, 6)
    assert server.stop() == 0
    server = start()
    (series,) = server.get("/api/v1/runs/gone/series", metric="v")["series"]
    assert series["value"] == [0.0, 1.0, 2.0]
    (series,) = server.get("/api/v1/runs/stays/series", metric="v")["series"]
    assert len(series["value"]) == 10


def test_attempts(server, make):
    def process(name, attempt):
        return make.resource("resumed", name) | {"tensormeter.run.attempt": attempt}

    def shown():
        run = server.get("/api/v1/runs/resumed")
        return run["attempt"], run["state"], run["started"], run["ended"]

    server.events(process("a0", 1), begin(0), end(10, "crashed"))
    assert shown() == (1, "crashed", str(T0), str(T0 + 10))
    server.events(process("b0", 2), begin(20))
    assert shown() == (2, "running", str(T0), None)
    server.events(process("b0", 2), end(30))
    assert shown() == (2, "finished", str(T0), str(T0 + 30))
    # Senders that do not number them: a new attempt begins when all that were there have ended.
    server.events(make.resource("again", "a"), begin(0), end(10, "failed"))
    server.events(make.resource("again", "b"), begin(11))
    server.events(make.resource("again", "c"), begin(12))
    run = server.get("/api/v1/runs/again")
    assert (run["attempt"], run["state"]) == (2, "running")


def test_the_environment_is_that_of_the_current_attempt(server_on_each, make):
    """A node reports from the first second on and knows no command line; ranks come in any order; attempts may have moved."""
    server = server_on_each
    node = {"tensormeter.process.kind": "node", "host.name": "a"}
    assert server.metrics(make.rows("env", [(T0, 0, {"hw.power": 1.0})], process="n", **node)).status == 200
    assert server.get("/api/v1/runs/env")["environment"]["host.name"] == "a"
    heard = [(1, 1, "b"), (1, 0, "c"), (2, 3, "d"), (2, 2, "e"), (2, None, "f"), (1, "x", "g")]
    expected = ["b", "c", "d", "e", "e", "e"]
    for (attempt, rank, host), speaker in zip(heard, expected, strict=True):
        resource = {"tensormeter.run.attempt": attempt, "host.name": host, "tensormeter.process.kind": "training"}
        resource |= {} if rank is None else {"tensormeter.rank": rank}
        batch = make.rows("env", [(T0 + SECOND, 1, {"loss": 1.0})], process=f"p{host}", **resource)
        assert server.metrics(batch).status == 200
        details = server.get("/api/v1/runs/env")
        assert details["environment"]["host.name"] == speaker
    assert len(details["processes"]) == 7


def test_losses_and_heartbeats(server, make):
    resource = partial(make.resource, project="losses")
    server.events(resource("lossy", "a"), begin(), end(9, dropped={"ring_full": 3, "odd": "x"}))
    server.events(resource("lossy", "b"), Event("tensormeter.process.end", T0 + 9, {"dropped": {"ring_full": 4}}))
    before = int(server.get("/api/v1/runs/lossy")["last_time"])
    server.events(resource("lossy", "a"), Event("tensormeter.run.heartbeat", T0 + 10, {"state": "running"}))
    run = server.get("/api/v1/runs/lossy")
    assert (run["losses"], run["lost"], run["lag"]) == ({"ring_full": 7}, 7, None)
    assert [process.get("losses") for process in run["processes"]] == [{"ring_full": 3}, {"ring_full": 4}]
    server.events(resource("huge"), begin(), end(9, dropped={"one": 2**63 - 1, "other": 2**63 - 1}))
    server.metrics(make.rows("behind", [(T0, 0, {"v": 1.0})], project="losses"))

    def run_ids(text):
        return [run["id"] for run in server.get("/api/v1/runs", project="losses", filter=text, sort="id")["runs"]]

    assert run_ids("lost > 0") == ["huge", "lossy"]
    assert run_ids("lost = 7") == ["lossy"]
    assert run_ids("lag > 60") == ["behind"]
    assert run_ids("lag = null") == ["huge", "lossy"]
    assert int(run["last_time"]) > before
    names = [event["name"] for event in server.get("/api/v1/runs/lossy/events")["events"]]
    assert sorted(names) == ["tensormeter.process.end", "tensormeter.run.end", "tensormeter.run.start"]


def test_losses_are_known_while_the_run_goes_on(server_on_each, make):
    """Each process says by heartbeats what it has dropped so far; the last word of each counts."""
    server = server_on_each
    resource = partial(make.resource, "dropping", project="dropping")

    def beat(process, time, **dropped):
        server.events(resource(process), Event("tensormeter.run.heartbeat", T0 + time, {"dropped": dropped}))
        run = server.get("/api/v1/runs/dropping")
        (listed,) = server.get("/api/v1/runs", project="dropping")["runs"]
        assert (run["state"], run["lost"]) == (listed["state"], listed["lost"])
        return run["state"], run["losses"], run["lost"]

    server.events(resource("a"), begin())
    assert beat("a", 1) == ("running", {}, 0)
    assert beat("a", 2, ring_full=3, damaged=5) == ("running", {"ring_full": 3, "damaged": 5}, 8)
    assert beat("b", 3, ring_full=1) == ("running", {"ring_full": 4, "damaged": 5}, 9)
    assert beat("a", 4, ring_full=4) == ("running", {"ring_full": 5}, 5)
    assert [event["name"] for event in server.get("/api/v1/runs/dropping/events")["events"]] == [
        "tensormeter.run.start"
    ]


def test_a_run_that_nothing_is_heard_of_is_stalled(start, make):
    server = start("--stall-after", "0.2")
    server.events(make.resource("quiet"), Event("tensormeter.run.start", T0, {}))
    server.events(make.resource("done"), Event("tensormeter.run.start", T0, {}), end(1))

    def states():
        return {run["id"]: run["state"] for run in server.get("/api/v1/runs")["runs"]}

    while states()["quiet"] != "stalled":
        assert states()["quiet"] in ("running", "stalled")
    assert states() == {"quiet": "stalled", "done": "finished"}
    assert server.get("/api/v1/runs", filter='state = "stalled"')["total"] == 1


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_images(server_on_each, make):
    server = server_on_each

    def image(data, content_type, key="sample", step=3):
        body = {"data": data, "content_type": content_type, "caption": "<script>"}
        return Event("tensormeter.image", T0 + step, body, {"tensormeter.key": key, "tensormeter.step": step})

    resource = make.resource("images")
    server.events(resource, image(PNG, "image/png"), image(PNG, "image/png", step=4))
    events = server.get("/api/v1/runs/images/events", name="tensormeter.image", key="sample")["events"]
    assert [event["step"] for event in events] == [4, 3]
    body = events[0]["body"]
    assert (body["content_type"], body["size"], body["caption"]) == ("image/png", len(PNG), "<script>")
    answer = server.http.request("GET", f"{server.url}/api/v1/runs/images/media/{body['digest']}")
    assert (answer.status, answer.data, answer.headers["Content-Type"]) == (200, PNG, "image/png")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert server.ask("/api/v1/runs/images/media/" + "0" * 64)[0] == 404
    other = server.ask(f"/api/v1/runs/nothing/media/{body['digest']}")
    assert other[0] == 404

    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    for data, content_type in ((svg, "image/svg+xml"), (svg, "image/png"), (PNG, "text/html"), (PNG, "image/jpeg")):
        answer = server.post("/v1/logs", encode_events(resource, [image(data, content_type)]))
        assert (answer.status, b"media must be one of" in answer.data) == (200, True)
    big = PNG + bytes(17 << 20)
    packed = zlib.compress(encode_events(resource, [image(big, "image/png")]), 1, wbits=31)
    assert b"the limit is 16 MiB" in server.post("/v1/logs", packed, Content_Encoding="gzip").data
    assert len(server.get("/api/v1/runs/images/events", name="tensormeter.im*")["events"]) == 2


def test_events(server_on_each, make):
    server = server_on_each
    resource = make.resource("eventful")
    columns = {"columns": ["a", "b"], "rows": [[1, "x"], [math.nan, None]]}
    table = Event("tensormeter.table", T0 + 5, columns, {"tensormeter.key": "t", "tensormeter.step": 7})
    text = Event("tensormeter.text", T0 + 6, "hello <b>", {"tensormeter.key": "u"})
    server.events(resource, table, text, table)

    def names(**query):
        return [event["name"] for event in server.get("/api/v1/runs/eventful/events", **query)["events"]]

    assert names() == ["tensormeter.text", "tensormeter.table"]
    assert names(key="t") == ["tensormeter.table"]
    assert names(name="tensormeter.te*") == ["tensormeter.text"]
    assert names(name="tensormeter.te%") == []
    assert names(start=T0 + 6) == ["tensormeter.text"]
    assert names(stop=T0 + 6) == ["tensormeter.table"]
    assert names(limit=1) == ["tensormeter.text"]
    (event,) = server.get("/api/v1/runs/eventful/events", key="t")["events"]
    assert event["body"] == {"columns": ["a", "b"], "rows": [[1, "x"], ["NaN", None]]}
    assert (event["step"], event["process"], event["time"]) == (7, "p0", str(T0 + 5))
    large = Event("tensormeter.text", T0, "x" * (4 << 20 | 1 << 16))
    assert b"the limit is 4 MiB" in server.post("/v1/logs", encode_events(resource, [large])).data


def test_pages_of_events(server_on_each, make):
    """Answers are bounded in size as well as in number; `next` goes on."""
    server, resource = server_on_each, make.resource("paged")
    for number in range(12):
        body = {"text": f"{number} " + "x" * (3 << 20), "content_type": "text/plain"}
        server.events(resource, Event("tensormeter.text", T0 + number // 2, body, {"tensormeter.key": "t"}))
    path = "/api/v1/runs/paged/events"
    events, before, pages = [], None, 0
    while True:
        answer = server.get(path, name="tensormeter.text", **({} if before is None else {"before": before}))
        events += [int(event["body"]["text"].split()[0]) for event in answer["events"]]
        pages += 1
        before = answer["next"]
        if before is None:
            break
    assert sorted(events) == list(range(12))
    assert [number // 2 for number in events] == [number // 2 for number in reversed(range(12))]
    assert pages == 2
    listed = server.get(path, max_body=1000)
    assert listed["next"] is None
    assert [(event["body"], event["size"] > 3 << 20) for event in listed["events"]] == [(None, True)] * 12
    first = server.get(path, limit=5, max_body=1000)
    rest = server.get(path, limit=7, max_body=1000, before=first["next"])
    assert [event["id"] for event in first["events"] + rest["events"]] == [event["id"] for event in listed["events"]]
    assert rest["next"] is None
    for wrong in ("x", "1", "1-", "-1-2", "1-2-3", f"{2**63}-1", "\u0661-1"):
        assert server.ask(path, before=wrong)[0] == 400


def test_the_last_key_of_a_nested_value_may_contain_dots(server_on_each, make):
    config = {"opt": {"wd.x": 1, "lr": 2}}
    server_on_each.events(
        make.resource("dotted", project="dotted"), Event("tensormeter.run.start", T0, {"config": config})
    )
    query = {"project": "dotted", "filter": "config.opt.wd.x = 1", "fields": "config.opt.wd.x"}
    (run,) = server_on_each.get("/api/v1/runs", **query)["runs"]
    assert run["config"] == {"opt": {"wd.x": 1}}
    assert "config.opt.wd.x" in server_on_each.get("/api/v1/fields", project="dotted")["fields"]


def test_a_run_keeps_its_name_if_a_later_process_gives_none(server_on_each, make):
    """A run that is resumed without `name=`, and ranks that do not name the run, send the run ID as the name."""
    server = server_on_each

    def send(process, name):
        server.events(
            make.resource("named", process, **{"tensormeter.run.name": name}), Event("tensormeter.run.start", T0, {})
        )
        return server.get("/api/v1/runs/named")["name"]

    assert [send("a", "named"), send("b", "first try"), send("c", "named"), send("a", "named")] == [
        "named",
        *["first try"] * 3,
    ]
    assert send("d", "second try") == "second try"
    assert send("e", "named") == "second try"


def test_a_configuration_over_its_limit_loses_its_largest_values(server_on_each, make):
    server, resource = server_on_each, make.resource("configured")
    config = {"lr": 0.1, "ids": list(range(300_000)), "data": {"text": "x" * 600_000, "name": "digits"}}
    body = {"config": config, "tags": ["t"], "notes": "n"}
    answer = server.post("/v1/logs", encode_events(resource, [Event("tensormeter.run.start", T0, body)]))
    assert b"1 log record: the configuration is larger than 1 MiB as JSON; left out ids" in answer.data
    run = server.get("/api/v1/runs/configured")
    assert run["config"] == {"lr": 0.1, "data": config["data"]}
    assert (run["tags"], run["notes"]) == (["t"], "n")
    (event,) = server.get("/api/v1/runs/configured/events")["events"]
    assert event["body"]["config"] == run["config"]


def test_results_that_scripts_state(server_on_each, make):
    """Values in the summary, and the statistics that definitions select, represent runs in lists, filters and orders."""
    server, place = server_on_each, "results"
    definitions = [
        {"name": "*", "summary": "mean"},
        {"name": "acc*", "summary": "max"},
        {"name": "loss", "summary": "none"},
    ]
    bodies = [
        {"config": {"a": 1}, "summary": {"best": 0.5, "note": "good", "test": {"f1": 0.75, "ok": True}}},
        {"definitions": [*definitions, {"name": "eval/*", "step_metric": "epoch"}, {"summary": "max"}, 7, {"name": 3}]},
        {"summary": {"acc": "none yet"}, "forked_from": {"run": "r0", "step": 7}},
        {},
    ]
    for number, body in enumerate(bodies):
        resource = make.resource(f"r{number}", project=place)
        server.events(resource, begin(number * SECOND, **body))
        rows = [
            (T0 + step, step, {"acc": value, "loss": 2.0}) for step, value in enumerate([0.5 + number, 0.25, 0.125])
        ]
        server.metrics(make.rows(f"r{number}", rows, project=place))

    def documents(**query):
        return {run["id"]: run for run in server.get("/api/v1/runs", project=place, **query)["runs"]}

    runs = documents(fields="summary")
    assert {name: runs[name]["summary"]["acc"]["value"] for name in runs} == {
        "r0": 0.125, "r1": 1.5, "r2": "none yet", "r3": 0.125,
    }  # fmt: skip
    assert (runs["r1"]["summary"]["acc"]["last"], runs["r1"]["summary"]["loss"]["value"]) == (0.125, None)
    own = {name: entry for name, entry in runs["r0"]["summary"].items() if "count" not in entry}
    assert own == {
        "best": {"value": 0.5},
        "note": {"value": "good"},
        "test/f1": {"value": 0.75},
        "test/ok": {"value": True},
    }
    assert runs["r1"]["definitions"] == [*definitions, {"name": "eval/*", "step_metric": "epoch"}]
    assert (runs["r2"]["parent"], runs["r3"]["parent"]) == ({"run": "r0", "step": 7}, None)
    assert server.get("/api/v1/runs/r0", project=place)["summary"] == runs["r0"]["summary"]
    chosen = documents(fields="summary.best,summary.acc")["r0"]["summary"]
    assert (chosen["best"], chosen["acc"]["max"]) == ({"value": 0.5}, 0.5)
    assert [*documents(sort="-summary.acc", filter="summary.acc > 0")] == ["r1", "r3", "r0"]
    assert [*documents(sort="summary.acc.last,-summary.acc.max", filter="summary.acc.count = 3")] == [
        "r3",
        "r2",
        "r1",
        "r0",
    ]
    assert [*documents(filter='summary.note = "good" and summary.test/ok = true')] == ["r0"]
    assert [*documents(filter="summary.loss = null", sort="id")] == ["r1"]
    server.events(
        make.resource("r0", project=place),
        Event(
            "tensormeter.run.config", T0 + 1, {"summary": {"best": 0.9, "note": None, "test": {"f1": None, "ok": None}}}
        ),
    )
    server.events(make.resource("r0", project=place), Event("tensormeter.run.config", T0 + 2, {"config": {"a": 2}}))
    again = server.get("/api/v1/runs/r0", project=place)
    assert (again["summary"]["best"], again["config"], len(again["summary"])) == ({"value": 0.9}, {"a": 2}, 4)
    assert [*documents(filter="summary.best = 0.9")] == ["r0"]
    for at, process, summary in ((4, "p1", {"other": 1, "best": 0.7}), (3, "p2", {"best": 0.1, "third": 3})):
        resource = make.resource("r0", process, project=place)
        server.events(resource, Event("tensormeter.run.config", T0 + at, {"summary": summary}))
    merged = server.get("/api/v1/runs/r0", project=place)["summary"]
    stated = {name: entry["value"] for name, entry in merged.items() if "count" not in entry}
    assert stated == {"best": 0.7, "other": 1, "third": 3}


def test_names_of_results_are_suggested(server_on_each, make):
    server = server_on_each
    server.events(make.resource("n", project="suggested"), begin(summary={"best": 1, "deep": {"er": 2}}))
    fields = server.get("/api/v1/fields", project="suggested", kind="summary")["fields"]
    assert [name for name in fields if name != "summary.tensormeter.step"] == ["summary.best", "summary.deep/er"]


def test_one_id_in_two_projects_can_be_named(server, make):
    for project in ("left", "right"):
        server.metrics(make.rows("both", [(T0, 0, {"v": 1.0 if project == "left" else 2.0})], project=project))
    status, document = server.send("POST", "/api/v1/query", {"runs": ["both"], "metrics": ["v"]})
    assert (status, document["error"]["code"]) == (409, "ambiguous")
    lines = server.query("left/both", "right/both", metrics=["v"])["series"]
    assert [series["y"] for series in lines] == [[1.0], [2.0]]
    assert server.query("both", metrics=["v"], project="right")["series"][0]["y"] == [2.0]


def test_metrics_of_several_runs_are_one_list(server, make):
    for run, processes in (("m0", ("p0", "p1")), ("m1", ("p2",))):
        for process in processes:
            at = T0 + int(run[1])
            series = [
                make.gauge("shared", [at], [float(run[1])]),
                make.gauge("split", [at], [1.0], part="all"),
                make.gauge("split", [at], [1.0], part=run),
                make.gauge(f"only-{run}", [at], [1.0]),
            ]
            server.metrics(Batch(make.resource(run, process, project="union"), series))
    metrics = {metric["name"]: metric for metric in server.get("/api/v1/metrics?runs=m0,m1&project=union")["metrics"]}
    assert set(metrics) == {"shared", "split", "only-m0", "only-m1"}
    shared = metrics["shared"]
    assert (shared["points"], shared["processes"], shared["last"], shared["last_time"]) == (3, 2, 1.0, str(T0 + 1))
    assert [attributes["part"] for attributes in metrics["split"]["attributes"]] == ["all", "m0", "m1"]
    assert server.get("/api/v1/metrics?runs=m1&project=union") == server.get("/api/v1/runs/m1/metrics?project=union")
    for runs, status in (("", 400), (",".join(["m0"] * 201), 400), ("m0,unknown", 404)):
        assert server.send("GET", f"/api/v1/metrics?runs={runs}")[0] == status


def test_metrics_without_a_section_can_be_listed(server, make):
    names = ("a/b", "a/b/c", "a/c", "ab", "b")
    server.metrics(Batch(make.resource("level", project="level"), [make.gauge(name, [T0], [1.0]) for name in names]))

    def listed(path, **parameters):
        answer = server.get(path, project="level", direct="true", **parameters)
        assert answer["total"] == len(answer["metrics"])
        return [metric["name"] for metric in answer["metrics"]]

    assert listed("/api/v1/runs/level/metrics") == listed("/api/v1/metrics", runs="level") == ["ab", "b"]
    assert listed("/api/v1/runs/level/metrics", prefix="a/") == ["a/b", "a/c"]
    assert listed("/api/v1/runs/level/metrics", prefix="a/", search="C$") == ["a/c"]
