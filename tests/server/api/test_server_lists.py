"""Lists return what a request names: metrics by prefix, search and page, sections with counts, fields, and parts of runs."""

import re

import numpy as np
import pytest

from tensormeter.client import Client
from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge, Histogram
from tensormeter.server.query.line_search import LineSearch
from tensormeter.server.query.names.selection import NameSelection, select_names
from tensormeter.server.store.models.name_cache import NameCache
from tensormeter.server.store.models.names import DISTRIBUTION, NUMBER, NameTable

T0 = 1_750_000_000_000_000_000
NAMES = [f"layer_{i}/block_{j}/norm" for i in range(3) for j in range(4)]
NAMES += [
    "train/loss",
    "train/Loss_2",
    "eval/loss",
    "plain",
    "système/é",
    "odd\nname",
    "a(b",
    "system.cpu",
    "phase.forward",
]
WIDE = [f"w{i:05}" for i in range(6000)]


def gauges(names, time=T0, value=1.0):
    return [Gauge(name, np.array([time], np.uint64), np.array([value])) for name in names]


def histogram(name):
    at, one = np.array([T0], np.uint64), np.ones(1)
    counts = np.array([[1, 0]], np.uint64)
    return Histogram(name, at, at, np.ones(1, np.uint64), one, one, one, np.array([1.0]), counts)


@pytest.fixture(scope="module")
def server(server_on_each, make):
    resource = make.resource("lists", project="lists")
    config = {"lr": 0.1, "opt": {"name": "adam", "betas": [0.9, 0.99]}}
    server_on_each.events(resource, Event("tensormeter.run.start", T0, {"config": config}))
    series = [*gauges([*NAMES, STEP_METRIC]), histogram("train/sizes"), histogram("plain")]
    assert server_on_each.metrics(Batch(resource, series)).status == 200
    second = make.resource("second", project="lists")
    assert server_on_each.metrics(Batch(second, gauges(["train/loss", "layer_9/x"], T0 + 1, 2.0))).status == 200
    for process in ("p0", "p1"):
        wide = make.resource("wide", process, project="broad")
        assert server_on_each.metrics(Batch(wide, gauges(WIDE, T0 + len(process)))).status == 200
    return server_on_each


def pages(server, path, key, **query):
    """Return the entries and the totals of all pages."""
    entries, totals, after = [], set(), None
    while True:
        page = server.get(path, **query | ({} if after is None else {"after": after}))
        entries.append(page[key])
        totals.add(page["total"])
        after = page["next"]
        if after is None:
            return [entry for part in entries for entry in part], totals


def listed(server, **query):
    return [metric["name"] for metric in server.get("/api/v1/runs/lists/metrics", **query)["metrics"]]


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_pages_contain_each_metric_once_in_the_order_of_names(server, limit):
    metrics, totals = pages(server, "/api/v1/runs/lists/metrics", "metrics", limit=limit)
    names = [metric["name"] for metric in metrics]
    expected = sorted({*NAMES, STEP_METRIC, "train/sizes"})
    assert [*dict.fromkeys(names)] == expected
    assert totals == {len(expected)}
    assert names.count("plain") == 2  # a gauge and a histogram


def test_metrics_are_selected_by_prefix_search_kind_and_origin(server):
    assert listed(server, prefix="train/") == ["train/Loss_2", "train/loss", "train/sizes"]
    assert listed(server, search="LOSS") == ["eval/loss", "train/Loss_2", "train/loss"]
    assert listed(server, search="^train/.*s$") == ["train/loss", "train/sizes"]
    assert listed(server, search="block_[03]/", prefix="layer_1") == ["layer_1/block_0/norm", "layer_1/block_3/norm"]
    assert listed(server, search="a(") == ["a(b"]  # not a regular expression, so a text
    assert listed(server, search="É") == ["système/é"]
    assert listed(server, search="odd.name") == ["odd\nname"]
    assert listed(server, search="nothing") == []
    assert listed(server, kind="distribution") == ["plain", "train/sizes"]
    assert listed(server, kind="number", prefix="plain") == ["plain"]
    assert listed(server, system="true") == ["phase.forward", "system.cpu", STEP_METRIC]
    assert not {"system.cpu", STEP_METRIC} & {*listed(server, system="false")}


def test_sections_count_the_matching_names_below_them(server):
    path = "/api/v1/runs/lists/sections"
    top = server.get(path)
    counts = {section["name"]: section["metrics"] for section in top["sections"]}
    assert counts == {"eval": 1, "layer_0": 4, "layer_1": 4, "layer_2": 4, "système": 1, "train": 3}
    assert (top["metrics"], top["total"], top["next"]) == (6, 23, None)
    inner = server.get(path, prefix="layer_1/")
    assert inner["sections"] == [{"name": f"block_{j}", "metrics": 1} for j in range(4)]
    assert (inner["metrics"], inner["total"]) == (0, 4)
    assert server.get(path, prefix="train/")["metrics"] == 3
    found = server.get(path, search="block_[01]|loss")
    assert {section["name"]: section["metrics"] for section in found["sections"]} == {
        "eval": 1, "layer_0": 2, "layer_1": 2, "layer_2": 2, "train": 2,
    }  # fmt: skip
    sections, totals = pages(server, path, "sections", limit=2)
    assert {section["name"]: section["metrics"] for section in sections} == counts
    assert len(sections) == len(counts)
    assert totals == {23}
    assert server.send("GET", f"{path}?prefix=layer_1")[0] == 400


def test_lists_of_several_runs_contain_the_names_of_all(server):
    query = {"runs": "lists,second", "project": "lists"}
    (loss,) = server.get("/api/v1/metrics", prefix="train/loss", **query)["metrics"]
    assert (loss["points"], loss["last"]) == (2, 2.0)
    assert server.get("/api/v1/metrics", prefix="layer_9", **query)["total"] == 1
    sections = {section["name"] for section in server.get("/api/v1/sections", **query)["sections"]}
    assert {"layer_0", "layer_9"} <= sections


@pytest.mark.parametrize("runs", ["lists,lists", "lists,lists/lists", "lists/lists,lists,second,lists"])
def test_a_run_that_is_listed_again_counts_once(server, runs):
    (loss,) = server.get("/api/v1/metrics", prefix="train/loss", runs=runs)["metrics"]
    assert loss["points"] == 1 + ("second" in runs)
    answer = server.query(*runs.split(","), metrics=["train/loss"])
    assert [series["run"] for series in answer["series"]].count("lists") == 1


def test_names_that_arrive_later_are_listed_at_once(server, make):
    resource = make.resource("grows", project="lists")
    for count in range(1, 4):
        assert server.metrics(Batch(resource, gauges([f"g/{count}"]))).status == 200
        page = server.get("/api/v1/runs/grows/metrics", prefix="g/")
        assert [metric["name"] for metric in page["metrics"]] == [f"g/{i}" for i in range(1, count + 1)]


def test_runs_contain_the_fields_that_a_request_names(server):
    def run(**query):
        (document,) = server.get("/api/v1/runs", project="lists", filter="id = 'lists'", **query)["runs"]
        return document

    assert run()["summary"] == {}
    assert run()["config"]["opt"]["name"] == "adam"
    assert {*run(fields="summary")["summary"]} == {*NAMES, STEP_METRIC}
    assert run(fields="summary")["config"] == {}
    some = run(fields="config.opt.name,summary.train/loss")
    assert (some["config"], [*some["summary"]]) == ({"opt": {"name": "adam"}}, ["train/loss"])
    assert run(fields="config,summary") == run() | {"summary": run(fields="summary")["summary"]}
    details = server.get("/api/v1/runs/lists", project="lists")
    assert details["summary"] == run(fields="summary")["summary"]
    assert server.get("/api/v1/runs/lists", project="lists", fields="summary.plain")["summary"].keys() == {"plain"}
    first = server.get("/api/v1/runs", project="lists", sort="id", limit=1)
    assert (first["runs"][0]["id"], first["next"]) == ("lists" if first["total"] < 3 else "grows", 1)


def test_whole_summaries_of_wide_runs_arrive_in_pieces(server):
    run = server.get("/api/v1/runs/wide")
    assert [*run["summary"]] == WIDE
    assert {summary["count"] for summary in run["summary"].values()} <= {1, 2}
    (listed_run,) = server.get("/api/v1/runs", project="broad", fields="summary")["runs"]
    assert listed_run["summary"] == run["summary"]
    (client_run,) = Client(server.url).runs("broad")
    assert [*client_run.summary] == WIDE
    assert [metric.name for metric in client_run.metrics()] == WIDE
    assert [metric.name for metric in client_run.metrics(prefix="w0001")] == WIDE[10:20]


def test_a_name_with_commas_is_enclosed_in_backquotes(server, make):
    for number in range(3):
        resource = make.resource(f"run{number}", project="commas")
        batch = Batch(resource, gauges(["a,b"], T0 + number, number % 2) + gauges(["a"], T0 + number, number))
        assert server.metrics(batch).status == 200

    def runs(fields, sort="id"):
        listed = server.get("/api/v1/runs", project="commas", fields=fields, sort=sort)["runs"]
        return [(run["id"], {name: entry["last"] for name, entry in run["summary"].items()}) for run in listed]

    assert runs("summary.a,b") == [("run0", {"a": 0.0}), ("run1", {"a": 1.0}), ("run2", {"a": 2.0})]
    assert runs("`summary.a,b`") == [("run0", {"a,b": 0.0}), ("run1", {"a,b": 1.0}), ("run2", {"a,b": 0.0})]
    assert runs("summary.a,`summary.a,b`")[1] == ("run1", {"a": 1.0, "a,b": 1.0})
    assert [run for run, _ in runs("", "-`summary.a,b`,-summary.a.last")] == ["run1", "run2", "run0"]


def test_fields_are_the_config_keys_and_metrics_of_a_project(server):
    fields = server.get("/api/v1/fields", project="lists")["fields"]
    assert [name for name in fields if name.startswith("config.")] == [
        "config.lr",
        "config.opt.betas",
        "config.opt.name",
    ]
    assert {f"summary.{name}" for name in NAMES} <= {*fields}
    assert "summary.train/sizes" not in fields  # distributions have no summary
    assert server.get("/api/v1/fields", project="lists", kind="summary", search="EVAL")["fields"] == [
        "summary.eval/loss"
    ]
    assert server.get("/api/v1/fields", project="nothing") == {"fields": [], "next": None, "total": 0}


def test_lists_of_runs_show_each_change_at_once(server_on_each, make):
    server, path = server_on_each, "/api/v1/runs"
    query = {
        "project": "changing",
        "fields": "config.lr,summary.v",
        "sort": "-summary.v.last",
        "filter": "summary.v > 0",
    }

    def shown(**other):
        return [run["id"] for run in server.get(path, **query | other)["runs"]]

    for number in range(3):
        resource = make.resource(f"c{number}", project="changing")
        server.events(resource, Event("tensormeter.run.start", T0 + number, {"config": {"lr": number}}))
        assert server.metrics(Batch(resource, gauges(["v"], T0, 1.0 + number))).status == 200
        assert shown() == [f"c{i}" for i in range(number, -1, -1)]
    assert server.metrics(Batch(make.resource("c0", project="changing"), gauges(["v"], T0 + 1, 9.0))).status == 200
    assert shown() == ["c0", "c2", "c1"]
    assert shown(filter="config.lr >= 1", sort="config.lr") == ["c1", "c2"]
    server.events(
        make.resource("c1", project="changing"), Event("tensormeter.run.config", T0 + 9, {"config": {"lr": 7}})
    )
    assert shown(filter="config.lr >= 1", sort="config.lr") == ["c2", "c1"]
    assert shown(filter="state = 'running'") == ["c0", "c2", "c1"]
    server.events(make.resource("c2", project="changing"), Event("tensormeter.run.end", T0 + 9, {"state": "finished"}))
    assert shown(filter="state = 'running'", sort="id") == ["c0", "c1"]
    assert server.send("PATCH", f"{path}/c1", {"tags": ["x"], "archived": True})[0] == 200
    assert shown() == ["c0", "c2"]
    assert shown(filter="archived = true and tags has 'x'") == ["c1"]
    (project,) = (each for each in server.get("/api/v1/projects")["projects"] if each["name"] == "changing")
    assert project["runs"] == 3
    assert server.send("DELETE", f"{path}/c0")[0] == 204
    assert shown() == ["c2"]
    (project,) = (each for each in server.get("/api/v1/projects")["projects"] if each["name"] == "changing")
    assert project["runs"] == 2


LINES = ["", "loss", "Loss/a", "a b", "x\ty", "é", "a.b", "a/b/c", "]", "^", "norm_12", "norm_1"] * 3


@pytest.mark.parametrize(
    "pattern",
    ["", "loss", "^a", "b$", "[^a]", r"\s", r"\W", "a.b", r"norm_\d+$", "l|é", "(?i)LOSS", "^$", r"a\.b", "x*"],
)
@pytest.mark.parametrize("ignore_case", [True, False])
def test_searching_many_lines_equals_searching_each(pattern, ignore_case):
    lines = "".join(f"{line}\n" for line in LINES).encode()
    ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
    found = LineSearch(pattern, ignore_case=ignore_case).find(lines, ends, lambda: None).tolist()
    flags = re.ASCII | (re.IGNORECASE if ignore_case else 0)  # in RE2, classes such as \W are those of ASCII
    assert found == [i for i, line in enumerate(LINES) if re.search(pattern, line, flags)]


def test_name_tables_equal_sets_of_names():
    table = NameTable.of([b"b", b"a"], [b"c", b"b"])
    assert (table.names(), table.kinds.tolist()) == ([b"a", b"b", b"c"], [NUMBER, NUMBER | DISTRIBUTION, DISTRIBUTION])
    more = table.add({b"aa": NUMBER, b"c": NUMBER, b"": DISTRIBUTION, b"z/": NUMBER})
    assert more.names() == [b"", b"a", b"aa", b"b", b"c", b"z/"]
    assert more.kinds.tolist() == [2, 1, 1, 3, 3, 1]
    assert more.digest == NameTable.of([b"a", b"aa", b"b", b"c", b"z/"], [b"", b"b", b"c"]).digest
    assert NameTable.of_lines(b"a\nb", NUMBER).digest == NameTable.of([b"a", b"b"]).digest
    assert NameTable.union([table, more, table]).digest == more.digest
    assert [name in more for name in (b"aa", b"ab", "aa")] == [True, False, False]
    assert len(NameTable.of(())) == 0
    assert select_names(NameTable.of(()), NameSelection(search="x", system=False)).tolist() == []


def test_the_cache_of_names_is_bounded_and_shares_equal_tables():
    tables = [NameTable.of([f"{i}-{j}".encode() for j in range(100)]) for i in range(5)]
    cache = NameCache(3 * tables[0].nbytes)
    for key, table in enumerate(tables):
        assert cache.put(key, 1, table) is table
    assert [cache.get(key) is not None for key in range(5)] == [False, False, True, True, True]
    equal = NameTable.of(tables[4].names())
    assert cache.put("other", 1, equal) is tables[4]
    assert cache.get(2) is not None  # a shared table counts once
