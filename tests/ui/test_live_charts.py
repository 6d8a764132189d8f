"""Tests of charts of runs that are under way: updates, gaps, tooltips, thinning."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge as OtlpGauge
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from playwright.sync_api import expect
from sample_runs import SECOND, Sender

from tensormeter.otlp.batch import Batch
from tensormeter.otlp.encode import encode_metrics


def test_lines_break_where_nothing_was_recorded(open_tab: Callable[..., Any], site: Any) -> None:
    """A point flagged as not recorded, as Collectors send it after a failed scrape, interrupts the line, also in live updates."""
    began = time.time_ns() - 100 * SECOND

    def send(first: int, last: int, value: float = 5, *, recorded: bool = True) -> None:
        values = {"as_double": value} if recorded else {"flags": 1}
        points = [NumberDataPoint(time_unix_nano=began + second * SECOND, **values) for second in range(first, last)]
        named = {"service.name": "scraped", "service.instance.id": "p", "tensormeter.run.id": "scraped1"}
        attributes = [KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in named.items()]
        metric = Metric(name="load", gauge=OtlpGauge(data_points=points))
        of_run = ResourceMetrics(
            resource=Resource(attributes=attributes), scope_metrics=[ScopeMetrics(metrics=[metric])]
        )
        site.post("/v1/metrics", ExportMetricsServiceRequest(resource_metrics=[of_run]).SerializeToString())

    def strokes() -> int:
        (path,) = re.findall(r'<path d="([^"]*)" fill="none"', Path(tab.save(card, "SVG").path()).read_text())
        return int(path.count("M"))

    send(0, 30)
    send(30, 50, recorded=False)
    send(50, 60)
    tab = open_tab(site.url)
    tab.go("#/p/scraped/runs/scraped1")
    card = tab.card("load")
    assert strokes() == inked_stretches(card) == 2
    send(60, 61, recorded=False)
    send(80, 90, 6)
    expect(card.locator(".last")).to_have_text("6")
    tab.settle()
    assert strokes() == inked_stretches(card) == 3


def inked_stretches(card: Any) -> int:
    """Count the coloured stretches of a chart's width that are separated by blank pixels."""
    return int(
        card.locator("canvas").evaluate(
            """(canvas) => {
                const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                let stretches = 0;
                let last = -9;
                for (let x = 0; x < canvas.width; x++) {
                    for (let y = 0; y < canvas.height; y++) {
                        const [r, g, b] = data.subarray(4 * (y * canvas.width + x));
                        if (Math.max(r, g, b) - Math.min(r, g, b) < 80) continue;
                        if (x - last > 8) stretches++;
                        last = x;
                        break;
                    }
                }
                return stretches;
            }"""
        )
    )


def test_live_updates_read_only_new_points(open_tab: Callable[..., Any], site: Any) -> None:
    sender = Sender(site.post, "live", "live1", "a run under way")
    began = time.time_ns()
    sender.event("run.start", began, {"config": {}})
    steps = np.arange(1000, dtype=np.int64)
    sender.rows(began + steps, steps, {"loss": 1 / (1 + steps)})
    tab = open_tab(site.url)
    page = tab.go("#/p/live/runs/live1")
    card = tab.card("loss")
    expect(card.locator(".last")).to_have_text("0.001")
    more = np.arange(1000, 1010, dtype=np.int64)
    sender.rows(began + more + SECOND, more, {"loss": more * 0 + 0.5})
    expect(card.locator(".last")).to_have_text("0.5")
    last = tab.asked("/api/v1/query")[-1]
    assert json.loads(last.post_data)["after"]
    assert len(last.response().body()) < 1000
    expect(tab.hover(card, 0.999)).to_contain_text("0.5")
    sender.rows(began + more + 2 * SECOND, more + 10, {"fresh/metric": more * 1.0})
    tab.card("fresh/metric")
    sender.event("run.end", began + 3 * SECOND, {"state": "failed"})
    expect(page.locator(".health .badge")).to_have_text("failed")


def test_a_metric_that_arrives_during_a_reload_is_shown(
    open_tab: Callable[..., Any], site: Any, wait_for: Callable[..., Any]
) -> None:
    sender = Sender(site.post, "live", "reloads", "a run under way")
    began, one = time.time_ns(), np.arange(1, dtype=np.int64)
    sender.event("run.start", began, {"config": {}})
    sender.rows(began + one, one, {"loss": one * 1.0})
    tab = open_tab(site.url)
    page = tab.go("#/p/live/runs/reloads")
    last = tab.card("loss").locator(".last")
    expect(last).to_have_text("0")
    held: list[tuple[Any, Any]] = []

    def hold(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    page.route(re.compile(r"/runs/reloads/metrics\?"), hold)
    sender.rows(began + one + SECOND, one + 1, {"loss": one + 1.0})
    expect(last).to_have_text("1")
    wait_for(lambda: page.evaluate("1") and held, "the reload has read the metrics")
    sender.rows(began + one + 2 * SECOND, one + 2, {"loss": one + 2.0, "fresh/metric": one * 1.0})
    expect(last).to_have_text("2")
    ((route, answer),) = held
    route.fulfill(response=answer)
    tab.card("fresh/metric")


def test_tooltip_stays_while_other_charts_appear(open_tab: Callable[..., Any], site: Any) -> None:
    began = time.time_ns()
    steps = np.arange(10, dtype=np.int64)
    senders = [Sender(site.post, "pointed", f"pointed{run}", f"pointed {run}") for run in range(2)]
    for run, sender in enumerate(senders):
        sender.event("run.start", began, {"config": {}})
        sender.rows(began + steps, steps, {"first": steps + run})
    tab = open_tab(site.url)
    page = tab.go("#/p/pointed/runs/pointed0,pointed1")
    card = tab.card("first")
    tab.settle()
    tooltip = tab.hover(card)
    for name in ("second", "third"):
        for sender in senders:
            sender.rows(began + steps + SECOND, steps + 10, {name: steps})
        expect(tab.card(name).locator("canvas")).to_be_visible()
        expect(tooltip).to_be_visible()
        expect(page.locator(".runlist .nearest")).to_have_count(1)
        assert all(page.locator(".runlist .value").all_inner_texts())
    for sender in senders:
        sender.event("run.end", began + 3 * SECOND, {"state": "finished"})
    expect(page.locator(".runlist").get_by_role("img", name="finished")).to_have_count(2)
    expect(page.locator(".runlist .nearest")).to_have_count(1)
    page.mouse.move(2, 2)
    expect(tooltip).to_be_hidden()
    expect(page.locator(".runlist .nearest")).to_have_count(0)


def test_growing_runs_are_thinned_and_keep_spikes(open_tab: Callable[..., Any], site: Any) -> None:
    began = time.time_ns()
    growing, other = (Sender(site.post, "live", run, "twin") for run in ("twin1", "twin2"))

    def grow(first: int, n: int, value: float) -> None:
        steps = np.arange(first, first + n, dtype=np.int64)
        growing.rows(began + steps, steps, {"loss": np.where(steps == 500, 9.0, value)})

    for sender in (growing, other):
        sender.event("run.start", began, {"config": {}})
    grow(0, 1000, 1.0)
    few = np.arange(10, dtype=np.int64)
    other.rows(began + few, few, {"loss": few * 0 + 2.0, "second": few})
    tab = open_tab(site.url)
    tab.go("#/p/live/runs/twin1,twin2")
    card = tab.card("loss")
    tab.card("second")
    tab.settle()
    names = tab.hover(card).locator(".reading .name")
    expect(names).to_have_text(["twin (twin2)", "twin (twin1)"])
    plot = card.get_by_role("slider")
    for turn in range(1, 6):
        grow(turn * 1000, 1000, 1 + turn / 10)
        expect(plot).to_have_attribute("aria-valuemax", str(turn * 1000 + 999))
    rows = [line.split(",") for line in Path(tab.save(card, "CSV").path()).read_text().splitlines() if "twin1" in line]
    assert len(rows) <= 4000
    assert max(float(row[2]) for row in rows) == 9
    assert [row[0] for row in (rows[0], rows[-1])] == ["0", "5999"]
    other.rows(began + few + SECOND, few + 10, {"third": few})
    tab.card("third")
    for sender in (growing, other):
        sender.event("run.end", began + 3 * SECOND, {"state": "finished"})


def test_a_hidden_page_disconnects_until_it_is_visible(open_tab: Callable[..., Any], site: Any, wait_for: Any) -> None:
    """An open stream makes agents send data often, so a forgotten tab must not keep one."""
    began = time.time_ns()
    sender = Sender(site.post, "seen", "seen1", "seen")
    sender.event("run.start", began, {"config": {}})

    def log(step: int) -> None:
        sender.rows(np.array([began + step]), np.array([step]), {"loss": [float(step)]})

    def is_watched() -> bool:
        body = encode_metrics([Batch({"service.name": "seen", "tensormeter.run.id": "seen1"}, [])])
        answer = site.http.request("POST", f"{site.url}/v1/metrics", body=body, headers=site._headers)
        return "tensormeter-live" in answer.headers

    def set_hidden(hidden: bool) -> None:
        page.evaluate(
            """(hidden) => {
                Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    log(1)
    tab = open_tab(site.url)
    tab.page.clock.install()
    page = tab.go("#/p/seen/runs/seen1")
    card = tab.card("loss")
    expect(card.locator(".last")).to_have_text("1")
    wait_for(is_watched, "the stream is open")
    set_hidden(True)
    page.clock.fast_forward(59_000)
    assert is_watched()
    page.clock.fast_forward(2_000)
    wait_for(lambda: not is_watched(), "the stream is closed")
    log(2)
    set_hidden(False)
    expect(card.locator(".last")).to_have_text("2")
    wait_for(is_watched, "the stream is open again")
    log(3)
    expect(card.locator(".last")).to_have_text("3")
