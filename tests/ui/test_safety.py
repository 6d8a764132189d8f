"""Tests that texts of senders are never interpreted as markup, and that the page contacts its server only."""

from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect
from sample_runs import HOSTILE

PROJECT = quote(HOSTILE, safe="")
VIEWS = {
    "projects": "",
    "runs": f"#/p/{PROJECT}",
    "all columns": f"#/p/{PROJECT}?columns=state,tags,notes,group,id,config.{quote(quote(HOSTILE, safe=''), safe='')}",
    "grouped": f"#/p/{PROJECT}?group=group",
    "charts": f"#/p/{PROJECT}/runs/evil1",
    "full screen": f"#/p/{PROJECT}/runs/evil1?full={PROJECT}",
    "two": f"#/p/{PROJECT}/runs/evil1,evil2?group=group",
    "difference": f"#/p/{PROJECT}/runs/evil1,evil2/difference?equal=1",
    "system": f"#/p/{PROJECT}/runs/evil1/system",
    "distributions": f"#/p/{PROJECT}/runs/evil1/distributions",
    "media": f"#/p/{PROJECT}/runs/evil1/media",
    "logs": f"#/p/{PROJECT}/runs/evil1/logs?q={PROJECT}",
    "overview": f"#/p/{PROJECT}/runs/evil1/overview",
}


@pytest.mark.parametrize("view", VIEWS)
def test_markup_stays_text(tab: Any, view: str) -> None:
    page = tab.go(VIEWS[view])
    expect(page.get_by_text("window.hacked", exact=False).first).to_be_attached()
    page.mouse.move(640, 500)
    page.mouse.move(645, 505)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("main img[src='x'], main script").count() == 0


@pytest.mark.parametrize("address", ["#/p/a%ZZ", "#/p/vision?columns=%&sort=%%%&selected=%E0%A4%A", "#/x/y/z", "#?="])
def test_malformed_addresses_show_a_page(tab: Any, address: str) -> None:
    page = tab.go(address)
    expect(page.locator("main > *").first).to_be_visible()
    page.wait_for_timeout(0)
    tab.errors[:] = [error for error in tab.errors if "status of 400" not in error]


def test_browser_refuses_markup_from_strings(tab: Any) -> None:
    page = tab.go("")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    with page.expect_console_message(lambda message: "TrustedHTML" in message.text):
        error = page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } }"
        )
    assert error == "TypeError"
    assert [text for text in tab.errors if "TrustedHTML" not in text] == []
    tab.errors.clear()
