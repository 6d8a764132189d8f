"""Tests of resumed and forked runs, and of the results and axes that scripts define."""

import re
import time
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer
from playwright.sync_api import expect
from sample_runs import SECOND, Sender

NODE = {"tensormeter__process__kind": "node"}


@pytest.fixture(scope="module")
def resumed(site: LiveServer) -> None:
    """Send a run whose second attempt repeats steps 60 to 99, a fork of it, and a run with definitions."""
    began = time.time_ns() - 1000 * SECOND
    for attempt, steps in ((1, np.arange(100)), (2, np.arange(60, 120))):
        about = {"tensormeter__run__attempt": attempt, "tensormeter__rank": 0}
        sender = Sender(site.post, "again", "resumed", "resumed", f"p{attempt}", **about)
        start = began + (attempt - 1) * 200 * SECOND
        sender.event("run.start", start, {"config": {"lr": 0.1}})
        sender.rows(start + np.arange(len(steps)) * SECOND, steps, {"loss": attempt + steps / 1000})
        sender.event("run.end", start + 150 * SECOND, {"state": "finished"})
    Sender(site.post, "again", "resumed", "resumed", "host", **NODE).rows(
        np.array([began]), np.array([0]), {"system.load": [1]}
    )
    fork = Sender(site.post, "again", "fork", "fork")
    fork.event("run.start", began, {"forked_from": {"run": "resumed", "step": 50}})
    fork.rows(began + np.arange(20) * SECOND, np.arange(51, 71), {"loss": 5 + np.arange(20) / 1000})
    fork.event("run.end", began + 30 * SECOND, {"state": "finished"})
    defined = Sender(site.post, "again", "defined", "defined")
    slow = "*a" * 40 + "b"  # a search without bound would take years
    definitions = [
        {"name": "*v?l/*c*", "step_metric": "epoch"},
        {"name": "eval/acc", "summary": "max"},
        {"name": slow, "step_metric": "loss"},
    ]
    defined.event("run.start", began, {"definitions": definitions, "summary": {"verdict": "good"}})
    values = {"loss": np.arange(40), "epoch": np.arange(40) // 10, "a" * 200: np.arange(40)}
    defined.rows(began + np.arange(40) * SECOND, np.arange(40), values)
    defined.rows(
        began + np.arange(10, 50, 10) * SECOND + 1, np.arange(9, 49, 10), {"eval/acc": [0.5, 0.75, 0.625, 0.25]}
    )
    defined.event("run.end", began + 50 * SECOND, {"state": "finished"})


def labels(tab: Any, card: Any) -> set[str]:
    return {line.split(",")[1].strip('"') for line in tab.save(card, "CSV").path().read_text().splitlines()[1:]}


def test_hidden_attempts_are_named_and_can_be_shown(tab: Any, resumed: None) -> None:
    page = tab.go("#/p/again/runs/resumed")
    banner = page.get_by_text("Attempt 1 is hidden from step 60 on")
    expect(banner).to_be_visible()
    assert len(tab.save(tab.card("loss"), "CSV").path().read_text().splitlines()) == 121
    expect(page.locator(".facts")).to_contain_text(re.compile(r"ranks\s*1(?!\d)"))
    page.get_by_role("link", name="Show all attempts").click()
    expect(page.get_by_label("all attempts")).to_be_checked()
    expect(page.locator('.card[aria-label="loss"] .legend')).to_contain_text("attempt 2")
    assert labels(tab, tab.card("loss")) == {"attempt 1", "attempt 2"}
    page.get_by_label("all attempts").uncheck()
    expect(banner).to_be_visible()
    assert "attempts" not in page.url


def test_a_fork_shows_the_curve_of_its_parent(tab: Any, resumed: None) -> None:
    page = tab.go("#/p/again/runs/fork")
    assert labels(tab, tab.card("loss")) == {"fork", "fork: parent resumed"}
    page.get_by_label("parent's curve").uncheck()
    expect(page.locator('.card[aria-label="loss"] .legend button')).to_have_count(0)
    assert labels(tab, tab.card("loss")) == {"fork"}
    assert "parents=0" in page.url
    expect(page.get_by_label("all attempts")).to_be_hidden()


def test_definitions_choose_axes_and_values(tab: Any, resumed: None) -> None:
    page = tab.go("#/p/again/runs/defined")
    rows = tab.save(tab.card("eval/acc"), "CSV").path().read_text().splitlines()[1:]
    assert [float(row.split(",")[0]) for row in rows] == [0, 1, 2, 3]
    assert page.get_by_label("x axis").input_value() == "step"
    expect(tab.card("eval/acc").locator(".remark")).to_have_text("x: epoch")
    expect(tab.card("a" * 200)).to_be_visible()
    page.get_by_label("x axis").select_option("relative")
    tab.settle()
    rows = tab.save(tab.card("eval/acc"), "CSV").path().read_text().splitlines()[1:]
    assert float(rows[0].split(",")[0]) > 5
    page = tab.go("#/p/again?columns=summary.eval/acc,summary.verdict&sort=-summary.eval/acc.value")
    row = page.get_by_role("row").filter(has_text="defined")
    expect(row).to_contain_text("0.75")
    expect(row).to_contain_text("good")
    expect(tab.go("#/p/again/runs/defined/overview").get_by_role("region", name="Results")).to_contain_text("verdict")
    page = tab.go("#/p/again/runs/fork/overview")
    expect(page.get_by_role("link", name="resumed")).to_have_attribute("href", "#/p/again/runs/resumed")
