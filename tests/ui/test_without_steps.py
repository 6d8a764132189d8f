"""Tests of metrics without steps, from instruments or other software: they are shown by time, or a remark explains why not."""

import re
import time
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer
from playwright.sync_api import expect
from sample_runs import SECOND, Sender

from tensormeter.otlp.batch import STEP_METRIC, Batch, Buckets, Event, ExponentialHistogram, Gauge, Scope
from tensormeter.otlp.encode import encode_events, encode_metrics

N = 100


def values(name: str, first: int, unit: str = "", scope: str = "data", **attributes: str) -> Gauge:
    times = (first + np.arange(N) * SECOND).astype(np.uint64)
    return Gauge(name, times, 1 / np.arange(1.0, N + 1), unit=unit, scope=Scope(scope), attributes=attributes)


def distribution(name: str, first: int) -> ExponentialHistogram:
    """A histogram metric with zeros and values near 100."""
    times = (first + np.arange(N) * SECOND).astype(np.uint64)
    hundreds = Buckets(np.full(N, 53), [np.array([400], np.uint64)] * N)
    nothing = Buckets(np.zeros(N, np.int64), [np.array([], np.uint64)] * N)
    count, zeros = np.full(N, 1000, np.uint64), np.full(N, 600, np.uint64)
    column = np.full(N, 0.0)
    return ExponentialHistogram(
        name, times, times, count, column + 40000, column, column + 100,
        scales=np.full(N, 3), zero_counts=zeros, zero_thresholds=column, positive=hundreds, negative=nothing,
        scope=Scope("data"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(site: LiveServer) -> int:
    """Send runs without steps, with steps, with both, and a foreign service. Returns their start time."""
    began = time.time_ns() - N * SECOND
    times = began + np.arange(N) * SECOND
    Sender(site.post, "steps", "stepless", "stepless").series(values("loss", began), distribution("relu", began))
    Sender(site.post, "steps", "other", "other").series(values("loss", began))
    Sender(site.post, "steps", "stepped", "stepped").rows(times, np.arange(N), {"loss": 1 / np.arange(1.0, N + 1)})
    mixed = Sender(site.post, "steps", "mixed", "mixed")
    mixed.rows(times, np.arange(N), {"loss": 1 / np.arange(1.0, N + 1)})
    mixed.series(values("queue", began + 1))
    units = Sender(site.post, "steps", "units", "units")
    units.series(values("requests", began, "{request}", "liba"), values("requests", began, "By", "libb"))
    units.series(values("wait", began, "s", "liba"), values("wait", began, "s", "libb"))
    resource = {"service.name": "steps-web", "service.instance.id": "1"}
    site.post("/v1/metrics", encode_metrics([Batch(resource, [values("requests", began, "{request}", "http")])]))
    return began


def axis(page: Any) -> str:
    chosen: str = page.get_by_label("x axis").input_value()
    return chosen


def test_run_without_steps_uses_time(tab: Any, first: int) -> None:
    page = tab.go("#/p/steps/runs/stepless")
    expect(tab.card("loss").get_by_role("status")).to_be_hidden()
    assert axis(page) == "time"
    page.get_by_label("x axis").select_option("step")
    card = tab.card("loss")
    expect(card.get_by_role("status")).to_have_text(re.compile("100 points without a step"))
    assert "x=step" in page.url
    card.get_by_role("button", name="Show by time").click()
    expect(card.get_by_role("status")).to_be_hidden()


def test_foreign_service_uses_time(tab: Any, site: LiveServer, first: int) -> None:
    page = tab.go("#/p/steps-web")
    page.locator(".row a").first.click()
    expect(tab.card("requests").get_by_role("status")).to_be_hidden()
    assert axis(page) == "time"


def test_several_runs_without_steps_use_relative_time(tab: Any, first: int) -> None:
    page = tab.go("#/p/steps/runs/stepless,other")
    expect(tab.card("loss").get_by_role("status")).to_be_hidden()
    assert axis(page) == "relative"


def test_one_chart_without_steps_uses_time(tab: Any, first: int) -> None:
    """It uses time, the others use steps. Zooming into it selects time for all charts."""
    page = tab.go("#/p/steps/runs/mixed")
    for name in ("loss", "queue"):
        expect(tab.card(name).get_by_role("status")).to_be_hidden()
    assert axis(page) == "step"
    tab.drag(tab.card("queue"), 0.2, 0.6)
    expect(page.get_by_label("Zoom out")).to_be_visible()
    assert axis(page) == "time"


def test_remark_counts_runs_without_steps(tab: Any, first: int) -> None:
    page = tab.go("#/p/steps/runs/stepped,stepless")
    card = tab.card("loss")
    expect(card).to_contain_text("1 run has points without a step")
    assert axis(page) == "step"
    page.get_by_label("x axis").select_option("relative")
    expect(card).not_to_contain_text("without a step")


def test_distributions_without_steps_use_time(tab: Any, first: int) -> None:
    tab.go("#/p/steps/runs/stepless/distributions")
    card = tab.card("relu")
    expect(card).to_contain_text(re.compile("after 1m 3[89]s"))
    expect(card).to_contain_text("1k values")


def test_metrics_with_two_units_get_two_charts(tab: Any, first: int) -> None:
    page = tab.go("#/p/steps/runs/units")
    for title, unit in (("requests (By)", "B"), ("requests ({request})", "")):
        expect(tab.card(title).get_by_role("status")).to_be_hidden()
        expect(tab.card(title).locator(".last")).to_have_text(re.compile(f"0.01.*{unit}"))
    # Libraries with the same unit share a chart, whose lines have their names.
    assert tab.card("wait").locator(".legend button").all_text_contents() == ["liba", "libb"]
    assert page.locator(".card").count() == 3


def test_idle_service_banner_does_not_mention_steps(tab: Any, site: LiveServer, first: int) -> None:
    page = tab.page

    def silent(route: Any) -> None:
        response = route.fetch()
        document = response.json()
        route.fulfill(response=response, json=document | {"state": "stalled"})

    (run,) = site.get("/api/v1/runs?project=steps-web").json()["runs"]
    page.route(f"**/api/v1/runs/{run['id']}?*", silent)
    tab.go(f"#/p/steps-web/runs/{run['id']}")
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("No data has arrived for several minutes")
    expect(banner).not_to_contain_text("step usually takes")


def test_log_records_show_their_level(tab: Any, site: LiveServer, first: int) -> None:
    scope, trace = Scope("lib.a"), "5b8efff798038103d269b633813fc60c"
    resource = {"service.name": "steps-web", "service.instance.id": "1"}
    broke = Event("broke", first, "it broke", severity_number=17, severity_text="Fatal!", trace_id=trace, scope=scope)
    odd = Event("odd", first, {"a": 1}, severity_number=14, scope=scope)
    site.post("/v1/logs", encode_events(resource, [broke, odd]))
    (run,) = site.get("/api/v1/runs?project=steps-web").json()["runs"]
    page = tab.go(f"#/p/steps-web/runs/{run['id']}/overview")
    panel = page.get_by_label("Events", exact=True)
    expect(panel.locator("li.bad")).to_contain_text(re.compile(f"ERROR broke it broke .*lib.a · trace {trace}"))
    expect(panel.locator("li.warn")).to_contain_text('WARN odd {"a":1}')


def test_first_steps_switch_the_axis_to_step(tab: Any, site: LiveServer) -> None:
    """A run uses time until it logs steps."""
    now = time.time_ns()
    sender = Sender(site.post, "steps", "late", "late")
    sender.series(values("warmup", now - N * SECOND))
    page = tab.go("#/p/steps/runs/late")
    expect(tab.card("warmup").get_by_role("status")).to_be_hidden()
    assert axis(page) == "time"
    sender.series(
        Gauge(STEP_METRIC, np.array([now], np.uint64), np.array([7])),
        Gauge("loss", np.array([now], np.uint64), np.array([1.5])),
    )
    tab.card("loss")
    expect(page.get_by_label("x axis")).to_have_value("step")
