"""Tests of the runs table: contents, filter, sort, groups, columns, editing, and state in the address."""

import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import numpy as np
from live_server import FRAMES
from playwright.sync_api import Page, expect
from sample_runs import Sender


def names(page: Page) -> list[str]:
    """Names of the visible runs, from top to bottom."""
    expect(page.locator(".rows .row:not([hidden]):not(.waiting)").first).to_be_visible()
    # Rows are drawn in the frame after their response.
    page.evaluate(FRAMES)
    expect(page.locator(".rows .row.waiting:not([hidden])")).to_have_count(0)
    texts = page.evaluate(
        """() => [...document.querySelectorAll('.rows .row:not([hidden]):not(.group)')]
            .sort((a, b) => a.dataset.index - b.dataset.index)
            .map((row) => row.querySelector('a')?.textContent).filter(Boolean)"""
    )
    return list(texts)


def test_projects_link_to_their_runs(tab: Any) -> None:
    page = tab.go("")
    expect(page.locator(".attention")).to_contain_text("crashed")
    page.get_by_role("link", name="vision 12 runs").click()
    expect(page.get_by_text("12 runs", exact=True)).to_be_visible()
    assert len(names(page)) == 12
    assert page.title() == "vision · tensormeter"


def test_states_are_words_with_the_time_of_the_last_update(tab: Any, site: Any) -> None:
    # Without a heartbeat, the run stalls while other tests run.
    Sender(site.post, "vision", "vis00", "resnet18-calm-00").event("run.heartbeat", time.time_ns())
    page = tab.go("#/p/vision")
    states = page.locator(".rows .badge")
    for state in ("running", "failed", "crashed", "preempted", "finished"):
        expect(states.filter(has_text=state).first).to_be_visible()
    expect(states.filter(has_text="running").first).to_have_attribute("title", re.compile(r"last update (.* ago|now)"))


def test_cells_show_full_values_under_the_pointer(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=config.optimizer")
    link = page.get_by_role("link", name="resnet18-calm-00", exact=True)
    link.hover()
    expect(link).to_have_attribute("title", "vis00")
    cell = page.get_by_role("gridcell", name="adamw").first
    cell.hover()
    expect(cell).to_have_attribute("title", "adamw")


def test_runs_are_filtered_by_text_and_by_button(tab: Any) -> None:
    page = tab.go("#/p/vision")
    expect(page.get_by_text("12 runs", exact=True)).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type('config.optimizer = "adamw" and config.batch_size > 300')
    page.keyboard.press("Enter")
    expect(page.get_by_text("3 runs match")).to_be_visible()
    assert [name[-2:] for name in names(page)] == ["02", "06", "10"]
    page.get_by_label("Filter runs").fill("")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="crashed").click()
    expect(page.get_by_text("1 run match")).to_be_visible()
    assert 'state = "crashed"' in unquote(page.url.replace("+", " "))
    page.get_by_role("button", name="crashed", pressed=True).click()
    expect(page.get_by_text("12 runs", exact=True)).to_be_visible()


def test_filter_completes_field_names(tab: Any) -> None:
    page = tab.go("#/p/vision")
    expect(page.get_by_text("12 runs", exact=True)).to_be_visible()
    page.get_by_label("Filter runs").fill('state = "failed" and config.mo')
    options = page.locator("datalist option")
    expect(options).to_have_count(2)
    assert options.nth(0).get_attribute("value") == 'state = "failed" and config.model.depth'


def test_filter_errors_name_the_position(tab: Any) -> None:
    page = tab.go("#/p/vision?filter=config.lr+%3E+and")
    expect(page.locator(".problem")).to_contain_text(re.compile(r"filter: .* at position \d+"))
    expect(page.get_by_text("Loading …")).to_have_count(0)
    assert [error for error in tab.errors if "400" not in error] == []
    tab.errors.clear()  # the browser logs the status 400


def test_empty_result_offers_to_clear_the_filter(tab: Any) -> None:
    page = tab.go("#/p/vision?filter=name+%3D+%22nobody%22")
    page.get_by_role("button", name="Clear filter").click()
    expect(page.get_by_text("12 runs", exact=True)).to_be_visible()


def test_runs_are_sorted_by_column(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=summary.eval%2Floss,config.seed")
    page.get_by_role("button", name="seed", exact=True).click()
    page.get_by_role("menuitem", name="Sort ascending").click()
    expect(page.get_by_role("columnheader", name="seed")).to_have_attribute("aria-sort", "ascending")
    page.wait_for_function(
        "() => document.querySelector('.rows .row[data-index=\"11\"] a')?.textContent.endsWith('11')"
    )
    assert [name[-2:] for name in names(page)] == [f"{index:02}" for index in range(12)]
    page.get_by_role("button", name="eval/loss", exact=True).click()
    page.get_by_role("menuitem", name="Sort descending").click()
    expect(page.get_by_role("columnheader", name="eval/loss")).to_have_attribute("aria-sort", "descending")
    assert "sort=-summary.eval%2Floss.value" in page.url


def test_groups_can_be_folded(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=config.optimizer,summary.eval%2Floss")
    page.get_by_role("button", name="optimizer", exact=True).click()
    page.get_by_role("menuitem", name="Group by this").click()
    heading = page.locator(".row.group .heading", has_text="optimizer = adamw")
    expect(heading).to_contain_text("6 runs · mean eval/loss")
    assert len(names(page)) == 12
    heading.get_by_role("button").click()
    page.wait_for_function("() => document.querySelectorAll('.rows .row:not([hidden]):not(.group) a').length === 6")


def test_job_types_are_shown_edited_filtered_and_grouped(open_tab: Callable[..., Any], site: Any) -> None:
    for run, job_type in (("j1", "eval"), ("j2", "train"), ("j3", "")):
        sender = Sender(site.post, "jobs", run, run)
        config = {"hydra": {"job": {"id": run, "num": run}, "output_dir": run}, "width": run}
        sender.event("run.start", time.time_ns(), {"config": config, **({"job_type": job_type} if job_type else {})})
    page = open_tab(site.url).go("#/p/jobs?columns=state,job_type&filter=job_type+%3D+%22eval%22")
    expect(page.get_by_text("1 run match")).to_be_visible()
    page.get_by_role("button", name="Edit job type: eval").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("test")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Edit job type: test")).to_be_visible()
    page = open_tab(site.url).go("#/p/jobs?columns=state,job_type&group=job_type")
    headings = page.locator(".row.group .heading")
    expect(headings).to_have_count(3)
    expect(headings.filter(has_text="job_type = test")).to_contain_text(re.compile(r"1 run$"))
    expect(headings.filter(has_text="job_type = \N{EN DASH}")).to_have_count(1)
    page = open_tab(site.url).go("#/p/jobs")
    added = page.get_by_role("columnheader", name="hydra.job.id")
    expect(page.get_by_role("columnheader", name="width").or_(added)).to_have_text(["width", "hydra.job.id"])
    page = open_tab(site.url).go("#/p/jobs/runs/j1/overview")
    expect(page.get_by_role("definition").filter(has_text="test")).to_be_visible()


def test_grouped_table_is_updated_live(open_tab: Callable[..., Any], site: Any) -> None:
    sender = Sender(site.post, "begun", "begun1", "just begun")
    began = time.time_ns()
    sender.event("run.start", began, {"config": {"lr": 1}})
    page = open_tab(site.url).go("#/p/begun?group=tags")
    expect(page.locator(".row.group .heading")).to_contain_text(re.compile(r"1 run$"))
    steps = np.arange(3, dtype=np.int64)
    sender.rows(began + steps, steps, {"loss": steps + 0.5})
    sender.event("run.end", began + 10, {"state": "finished"})
    expect(page.locator(".rows .badge").filter(has_text="finished")).to_be_visible()
    expect(page.locator(".row.group .heading")).to_contain_text("mean loss 2.5")


def test_columns_can_be_chosen_pinned_and_hidden(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=state,config.seed")
    page.get_by_role("button", name="Choose columns").click()
    page.get_by_label("Search fields").fill("train/loss")
    page.get_by_label(re.compile(r"^train/loss min")).check()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("columnheader", name="train/loss min")).to_be_visible()
    page.get_by_role("button", name="train/loss min").click()
    page.get_by_role("menuitem", name="Pin to the left").click()
    expect(page.get_by_role("columnheader").nth(2)).to_have_text("train/loss min")
    assert page.get_by_role("columnheader").nth(2).evaluate("(cell) => getComputedStyle(cell).position") == "sticky"
    page.get_by_role("button", name="seed", exact=True).click()
    page.get_by_role("menuitem", name="Hide").click()
    expect(page.get_by_role("columnheader", name="seed")).to_have_count(0)


def test_columns_can_be_chosen_before_fields_are_loaded(tab: Any) -> None:
    page, delayed, released = tab.page, [], []
    page.route(
        re.compile(r"/api/v1/(runs|fields)\?"),
        lambda route: route.continue_() if released else delayed.append(route),
    )
    page.goto(f"{tab.url}/#/p/vision?columns=state", wait_until="commit")
    page.get_by_role("button", name="Choose columns").click()
    page.get_by_label("Search fields").fill("train/loss")
    expect(page.locator(".chooser .fields li")).to_have_count(0)
    released.append(True)
    assert delayed
    for route in delayed:
        route.continue_()
    page.get_by_label(re.compile(r"^train/loss min")).check()
    expect(page.get_by_role("columnheader", name="train/loss min")).to_be_visible()
    expect(page.get_by_role("columnheader", name="state")).to_be_visible()


def test_sparklines_of_all_rows_take_one_request(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=spark.train%2Floss")
    expect(page.locator(".row:not([hidden]) .spark path").first).to_have_attribute("d", re.compile(r"^M.*L.*L"))
    assert len(tab.asked("/api/v1/query")) == 1


def test_tags_and_notes_are_edited_in_place(tab: Any, site: Any) -> None:
    page = tab.go("#/p/vision?columns=tags,notes&sort=-config.seed")
    row = page.locator('.row[data-index="0"]')
    row.get_by_role("button", name=re.compile("Edit tags")).click()
    page.get_by_label("Tags, separated by commas").fill("golden, <b>bold</b>")
    page.keyboard.press("Enter")
    expect(row.locator(".tag").nth(1)).to_have_text("<b>bold</b>")
    row.get_by_role("button", name=re.compile("Edit notes")).click()
    page.get_by_label("Text").fill("the best one so far")
    page.keyboard.press("Enter")
    expect(row).to_contain_text("the best one so far")
    page.wait_for_function(
        """async () => {
            const run = await (await fetch('/api/v1/runs/vis11')).json();
            return run.notes === 'the best one so far' && run.tags.join() === 'golden,<b>bold</b>';
        }"""
    )
    row.locator(".tag").first.click()
    expect(page.get_by_text("1 run match")).to_be_visible()


def test_refresh_keeps_an_open_editor(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=state,notes&sort=config.seed")
    row = page.locator('.row[data-index="2"]')
    row.get_by_role("button", name=re.compile("Edit notes")).click()
    page.get_by_label("Text").fill("half a sen")
    with page.expect_response("**/api/v1/runs?**"):
        pass
    page.evaluate(FRAMES)
    page.keyboard.type("tence")
    expect(page.get_by_label("Text")).to_have_value("half a sentence")
    page.keyboard.press("Escape")
    expect(row.get_by_role("button", name="Edit notes:")).to_be_visible()


def test_selected_runs_are_compared_and_recoloured(tab: Any) -> None:
    page = tab.go("#/p/vision?columns=state&sort=config.seed")
    for index in (1, 4):
        page.locator(f'.row[data-index="{index}"]').get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare 2").click()
    page.wait_for_url("**/runs/vis01%2Cvis04**")
    colors = page.locator(".runlist input.color")
    expect(colors).to_have_count(2)
    colors.first.evaluate("(input) => { input.value = '#123456'; input.dispatchEvent(new Event('change')); }")
    page.wait_for_function("() => location.hash.includes('colors=vis01')")
    expect(page.locator(".runlist input.color").first).to_have_value("#123456")


def test_pinned_runs_stay_on_top(tab: Any) -> None:
    page = tab.go("#/p/vision?sort=config.seed&selected=vis09")
    page.get_by_role("button", name="Pin", exact=True).click()
    page.wait_for_function("() => document.querySelector('.rows .row[data-index=\"0\"] a')?.textContent.endsWith('09')")


def test_a_link_restores_the_view(tab: Any, open_tab: Callable[..., Any]) -> None:
    page = tab.go(
        "#/p/vision?columns=state,config.seed&sort=-config.seed&filter=state+%3D+%22finished%22&selected=vis10"
    )
    expect(page.get_by_text("8 runs match")).to_be_visible()
    other = open_tab(tab.url)
    copy = other.go("#" + page.url.partition("#")[2])
    expect(copy.get_by_text("8 runs match")).to_be_visible()
    assert names(copy) == names(page)
    expect(copy.get_by_role("button", name="Compare 1")).to_be_visible()


def test_keys_move_select_edit_and_open(tab: Any) -> None:
    page = tab.go("#/p/vision?sort=config.seed&columns=state,tags,notes")
    expect(page.get_by_text("12 runs", exact=True)).to_be_visible()
    page.get_by_role("grid").focus()
    for key, field in (("n", "Text"), ("#", "Tags, separated by commas")):
        page.keyboard.press(key)
        expect(page.get_by_label(field)).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.get_by_role("grid")).to_be_focused()
    for key in ("ArrowDown", "ArrowDown", "Space", "ArrowUp", "Space"):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="Compare 2")).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/vis01")


def test_only_visible_rows_have_elements(tab: Any) -> None:
    page = tab.go("#/p/wide?columns=config.seed&sort=config.seed")
    expect(page.get_by_text("100 runs", exact=True)).to_be_visible()
    assert page.locator(".rows .row").count() < 50
    page.get_by_role("grid").evaluate("(grid) => { grid.scrollTop = grid.scrollHeight; }")
    expect(page.locator('.rows .row[data-index="99"]')).to_contain_text("sweep 099")
    assert page.locator(".rows .row").count() < 60


def test_table_requests_only_visible_fields(tab: Any) -> None:
    page = tab.go("#/p/wide?columns=config.seed")
    expect(page.get_by_text("100 runs", exact=True)).to_be_visible()
    page.wait_for_load_state("networkidle")
    sizes = [
        len(request.response().body()) for request in tab.asked("/api/v1/runs?") if "fields=config.seed" in request.url
    ]
    assert sizes
    assert max(sizes) < 100_000
    document = json.loads(tab.asked("fields=config.seed")[0].response().text())
    assert all(run["summary"] == {} for run in document["runs"])
