"""Tests of runs with many metrics: a tree of sections that are read when they are opened, search, pages, and choices of metrics."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from live_server import FRAMES, LiveServer
from playwright.sync_api import expect
from sample_runs import SECOND, Sender

LAYERS, PARTS, EXPERTS = 50, 24, 150
NORM = "model/layer_33/part_05/norm"
METRICS = ["loss", "train/loss", "train/lr"]
METRICS += [f"model/layer_{layer:02}/part_{part:02}/norm" for layer in range(LAYERS) for part in range(PARTS)]
METRICS += [f"experts/{expert:03}/load" for expert in range(EXPERTS)]
# Names in the sections "", "" of "", "" of "a", and "charts", next to a name without a section.
SLASHES = ["top", "charts/loss", "charts/lr", "/lead", "/other", "a/direct"]
SLASHES += [f"{section}/{number:02}" for section in ("/", "a/", "a/b") for number in range(70)]
STEPS = np.arange(3, dtype=np.int64)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A separate server, because other tests expect no other runs under way."""
    server = LiveServer(tmp_path_factory.mktemp("wide"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def senders(site: LiveServer) -> list[Sender]:
    """Send two runs with more metrics than the page reads at once. Returns the senders of the runs."""
    began = time.time_ns() - 60 * SECOND
    senders = [Sender(site.post, "deep", f"deep{run}", f"deep {run}") for run in range(2)]
    for run, sender in enumerate(senders):
        sender.event("run.start", began, {"config": {"seed": run, "model": {"width": 2 + run}}})
        sender.rows(began + STEPS * SECOND, STEPS, dict.fromkeys(METRICS, STEPS + run))
    text = f"the norm of {NORM} grows"
    senders[0].event("alert", began + SECOND, {"title": "Look at this", "text": text, "level": "WARN"})
    return senders


@pytest.fixture
def wide(tab: Any, senders: list[Sender]) -> Any:
    """The charts of a run with many metrics."""
    tab.go("#/p/deep/runs/deep0")
    tab.card("train/loss")
    return tab


def headings(page: Any) -> list[str]:
    return [text for text in page.locator(".fold").all_inner_texts() if text]


def fold(page: Any, name: str) -> Any:
    return page.locator(".fold").filter(has=page.get_by_text(name, exact=True))


def asked(tab: Any, kind: str) -> list[str]:
    return [request.url for request in tab.asked(f"/{kind}?") if "prefix=" in request.url]


def test_sections_are_read_when_they_are_opened(wide: Any) -> None:
    page = wide.page
    assert [re.sub(r"\s", "", text) for text in headings(page)] == ["train2", "charts1", "experts150", "model1,200"]
    assert page.locator(".card").count() == 2
    wide.settle()
    assert asked(wide, "sections") == []
    assert all("prefix=train" in url for url in asked(wide, "metrics"))
    fold(page, "model").click()
    expect(fold(page, "layer_49")).to_have_text(re.compile("layer_49 ?24"))
    assert page.locator(".card").count() == 2
    assert len(asked(wide, "sections")) == 1
    fold(page, "layer_49").click()
    expect(page.locator(".card")).to_have_count(2 + PARTS)
    wide.card("model/layer_49/part_00/norm")
    assert sum("layer_49" in url for url in asked(wide, "metrics")) == 1
    assert sum("model" in url for url in asked(wide, "metrics")) == 1
    fold(page, "model").click()
    expect(page.locator(".card")).to_have_count(2)


def test_a_page_opens_the_sections_that_lead_to_the_first_charts(tab: Any, site: LiveServer) -> None:
    """All metrics of this run are below two levels of sections."""
    began = time.time_ns() - 60 * SECOND
    sender = Sender(site.post, "layered", "layered", "layered")
    names = [f"layers/{layer:02}/expert_{expert:02}/norm" for layer in range(20) for expert in range(80)]
    sender.rows(began + STEPS * SECOND, STEPS, dict.fromkeys(names, STEPS))
    sender.event("run.end", began + 5 * SECOND, {"state": "finished"})
    page = tab.go("#/p/layered/runs/layered")
    tab.card("layers/00/expert_00/norm")
    expect(page.locator(".card")).to_have_count(80)
    expect(page.locator('.fold[aria-expanded="true"]')).to_have_count(2)
    fold(page, "00").click()
    expect(page.locator(".card")).to_have_count(0)
    fold(page, "01").click()
    expect(page.locator(".card")).to_have_count(80)
    expect(fold(page, "00")).to_have_attribute("aria-expanded", "false")


def test_open_sections_stay_open_after_a_reload(wide: Any) -> None:
    page = wide.page
    for name in ("train", "model", "layer_33"):
        fold(page, name).click()
        page.evaluate(FRAMES)
    wide.card(NORM)
    page.reload()
    # A section is read when it comes into sight.
    fold(page, "layer_33").scroll_into_view_if_needed()
    wide.card(NORM)
    expect(fold(page, "train")).to_have_attribute("aria-expanded", "false")
    assert page.locator(".card").count() == PARTS


@pytest.mark.parametrize("more", [0, 1000])
def test_empty_parts_of_names_are_sections(tab: Any, site: LiveServer, more: int) -> None:
    """Sections are the same whether all metrics are read at once or not."""
    run = f"slashes{more}"
    began = time.time_ns() - 60 * SECOND
    sender = Sender(site.post, "slashes", run, run)
    names = SLASHES + [f"z/{number}" for number in range(more)]
    sender.rows(began + STEPS * SECOND, STEPS, dict.fromkeys(names, STEPS))
    sender.event("run.end", began + 5 * SECOND, {"state": "finished"})
    page = tab.go(f"#/p/slashes/runs/{run}")
    labels = {"": "charts", "/": "/", "//": "/", "a/": "a", "a//": "/", "a/b/": "b", "charts/": "charts/"}
    members = {"": ["top"], "/": ["/lead", "/other"], "a/": ["a/direct"], "charts/": ["charts/loss", "charts/lr"]}
    members |= {prefix: [name for name in SLASHES if name.startswith(prefix)] for prefix in ("//", "a//", "a/b/")}

    def section(prefix: str) -> Any:
        """The heading of a section, whose title is its prefix."""
        return page.locator(f'.section > [title="{prefix}"]' if prefix else ".section > h2:not([title])")

    def check() -> None:
        for prefix, label in labels.items():
            # A section is read when it comes into sight.
            section(prefix).scroll_into_view_if_needed()
            if section(prefix).locator(".fold").get_attribute("aria-expanded") == "false":
                section(prefix).locator(".fold").click()
            cards = section(prefix).locator("xpath=..").locator("> .charts > .card")
            expect(cards).to_have_count(len(members[prefix]))
            assert cards.evaluate_all("cards => cards.map((card) => card.ariaLabel)") == members[prefix]
            listed = json.loads(site.get(f"/api/v1/runs/{run}/sections?system=false&prefix={prefix}").data)
            count = listed["total"] if prefix else listed["metrics"]
            expect(section(prefix)).to_have_text(re.compile(f"^{label} ?{count}$"))

    check()
    page.reload()
    tab.card("top")
    check()
    tab.card("//00")
    # Each of them is closed on its own.
    for prefix in ("//", "/", "a//", "charts/", ""):
        section(prefix).locator(".fold").click()
        expect(section(prefix).locator(".fold")).to_have_attribute("aria-expanded", "false")
    expect(page.locator('.fold[aria-expanded="true"]')).to_have_count(2)


def test_long_sections_are_read_in_pages(wide: Any) -> None:
    page = wide.page
    fold(page, "experts").click()
    wide.card("experts/000/load")
    wide.settle()
    assert page.locator(".card").count() == 102
    page.locator('.card[aria-label="experts/099/load"]').scroll_into_view_if_needed()
    expect(page.locator(".card")).to_have_count(2 + EXPERTS)
    wide.card("experts/149/load")


def test_search_shows_matching_charts_and_their_number(wide: Any) -> None:
    page = wide.page
    search = page.get_by_label("Search charts")
    status = page.locator(".found")
    expect(status).to_have_text(f"{len(METRICS):,} charts")
    search.fill("layer_07/part_0[12]")
    expect(status).to_have_text(f"2 of {len(METRICS):,} charts match")
    expect(page.locator(".card")).to_have_count(2)
    wide.card("model/layer_07/part_01/norm")
    search.fill("NORM|load")
    expect(status).to_have_text(f"1,350 of {len(METRICS):,} charts match")
    assert next(re.sub(r"\s", "", text) for text in headings(page)) == "experts150"
    wide.card("experts/000/load")
    search.fill("nothing like this")
    expect(page.get_by_text("No matching charts")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    wide.card("train/loss")
    expect(status).to_have_text(f"{len(METRICS):,} charts")


def test_search_in_the_address_is_answered_without_all_metrics(tab: Any, senders: list[Sender]) -> None:
    page = tab.go("#/p/deep/runs/deep0?q=layer_33/part_05")
    tab.card(NORM)
    assert page.locator(".card").count() == 1
    sizes = [len(request.response().body()) for request in tab.asked("/metrics?")]
    assert sum(sizes) < 200_000


def test_sections_are_operated_by_keys(wide: Any) -> None:
    page = wide.page
    fold(page, "train").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    expect(fold(page, "model")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(fold(page, "layer_00")).to_be_visible()
    expect(fold(page, "model")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(fold(page, "layer_00")).to_be_focused()
    nested = page.get_by_role("heading", level=3).filter(
        has=page.get_by_role("button", name="layer_00 24", expanded=False)
    )
    expect(nested).to_have_count(1)
    page.keyboard.press("Enter")
    wide.card("model/layer_00/part_00/norm")
    fold(page, "layer_00").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="layer_00 24", expanded=False)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(fold(page, "model")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(fold(page, "layer_00")).to_have_count(0)
    page.keyboard.press("Home")
    expect(fold(page, "train")).to_be_focused()


def test_new_metrics_are_counted(wide: Any, senders: list[Sender]) -> None:
    """Takes up to 10 s, the interval at which the page counts the metrics of a wide run."""
    page = wide.page
    fold(page, "train").click()
    fold(page, "charts").click()
    wide.card("loss")
    senders[0].rows(time.time_ns() + STEPS, STEPS + 10, {"new": STEPS, "fresh/metric": STEPS, "fresh/other": STEPS})
    expect(fold(page, "charts")).to_have_text(re.compile("charts ?2"))
    expect(fold(page, "fresh")).to_have_attribute("aria-expanded", "false")
    wide.card("new")


def test_updates_of_many_metrics_read_the_charts_in_sight(tab: Any, senders: list[Sender]) -> None:
    page = tab.go("#/p/deep/runs/deep1")
    expect(tab.card("train/loss").locator(".last")).to_have_text("3")
    tab.settle()
    before = len(tab.asked("/api/v1/query"))
    senders[1].rows(time.time_ns() + STEPS, STEPS + 20, dict.fromkeys(METRICS, STEPS + 99))
    expect(page.locator('.card[aria-label="train/loss"] .last')).to_have_text("101")
    queries = [json.loads(request.post_data) for request in tab.asked("/api/v1/query")[before:]]
    assert {metric for query in queries for metric in query["metrics"]} == {"train/loss", "train/lr"}


def test_wide_runs_are_compared(tab: Any, senders: list[Sender]) -> None:
    page = tab.go("#/p/deep/runs/deep0,deep1?open=model")
    tab.card("train/loss")
    fold(page, "layer_33").click()
    expect(tab.hover(tab.card(NORM)).locator(".reading")).to_have_count(2)
    assert not tab.asked("/runs/deep1/metrics")


def test_any_metric_can_be_the_axis(wide: Any) -> None:
    page = wide.page
    page.get_by_label("x axis").select_option(label="other metric …")
    dialog = page.get_by_role("dialog", name="Choose a metric as axis")
    dialog.get_by_label("Search metrics").fill("layer_33/part_05")
    dialog.get_by_role("button", name=NORM).click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_label("x axis")).to_have_value(f"metric:{NORM}")
    expect(wide.hover(wide.card("train/loss"))).to_contain_text(f"{NORM} ")
    page.get_by_label("x axis").select_option(label="other metric …")
    page.keyboard.press("Escape")
    expect(page.get_by_label("x axis")).to_have_value(f"metric:{NORM}")


def test_charts_of_closed_sections_open_in_full_screen(tab: Any, senders: list[Sender]) -> None:
    page = tab.go(f"#/p/deep/runs/deep0?full={NORM.replace('/', '%2F')}")
    expect(page.locator(f"dialog.full[aria-label='{NORM}'] canvas")).to_be_visible()


def test_alerts_link_to_metrics_of_closed_sections(wide: Any) -> None:
    page = wide.page
    link = page.get_by_role("alert").get_by_role("link", name=f"Show {NORM}")
    link.click()
    expect(page.locator(f"dialog.full[aria-label='{NORM}'] canvas")).to_be_visible()


def test_other_panes_read_no_list_of_metrics(tab: Any, senders: list[Sender]) -> None:
    for pane in ("system", "distributions", "media", "overview"):
        tab.go(f"#/p/deep/runs/deep0/{pane}")
        expect(tab.page.locator(".health .facts")).to_contain_text("step")
    tab.settle()
    answers = [request.response().json() for request in tab.asked("/metrics?")]
    assert max(len(answer["metrics"]) for answer in answers) <= 100
    assert all("fields=config" in request.url for request in tab.asked("/runs/deep0?"))


def test_a_table_of_wide_runs_reads_only_its_columns(tab: Any, senders: list[Sender]) -> None:
    page = tab.go("#/p/deep")
    for name in ("train/loss", "seed"):
        expect(page.get_by_role("columnheader", name=name).first).to_be_visible()
    page.get_by_role("button", name="Choose columns").click()
    page.get_by_label("Search fields").fill("layer_33/part_05/norm max")
    page.get_by_label(re.compile(f"^{NORM} max")).check()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("columnheader", name=f"{NORM} max")).to_be_visible()
    expect(page.get_by_role("gridcell", name="3", exact=True).first).to_be_visible()
    page.get_by_label("Filter runs").fill("summary.model/layer_33/part_05")
    expect(page.locator("datalist option").first).to_have_attribute("value", f"summary.{NORM}")
    tab.settle()
    summaries = [run["summary"] for request in tab.asked("/runs?") for run in request.response().json()["runs"]]
    assert max(map(len, summaries)) < 10


def test_points_of_charts_out_of_sight_are_evicted(open_tab: Callable[..., Any], site: LiveServer) -> None:
    """A page that has shown many long curves reads the first of them again."""
    steps = np.arange(1000, dtype=np.int64)
    began = time.time_ns() - 3600 * SECOND
    ranks = 12
    names = [f"curves/{number:03}" for number in range(120)]
    for rank in range(ranks):
        sender = Sender(site.post, "long", "long", "long", f"rank{rank}", tensormeter__rank=rank)
        sender.rows(began + steps * SECOND, steps, dict.fromkeys(names, steps + rank))
    sender.event("run.end", began + 1001 * SECOND, {"state": "finished"})
    tab = open_tab(site.url)
    page = tab.go("#/p/long/runs/long?ranks=each")
    tab.card(names[0])
    for name in names[::6]:
        tab.card(name)
    tab.settle()
    before = len(tab.asked("/api/v1/query"))
    page.evaluate("() => scrollTo(0, 0)")
    expect(page.locator(f'.card[aria-label="{names[0]}"] canvas')).to_be_visible()
    tab.settle()
    queries = [json.loads(request.post_data) for request in tab.asked("/api/v1/query")[before:]]
    assert names[0] in {metric for query in queries for metric in query["metrics"]}
