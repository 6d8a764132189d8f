"""What senders call things stays text, and the page talks to its server only."""

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
def test_odd_addresses_break_nothing(tab: Any, address: str) -> None:
    page = tab.go(address)
    expect(page.locator("main > *").first).to_be_visible()
    page.wait_for_timeout(0)
    tab.errors[:] = [error for error in tab.errors if "status of 400" not in error]


def test_markup_made_of_strings_is_refused_by_the_browser(tab: Any) -> None:
    page = tab.go("")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } }"
    )
    assert refused
    tab.errors.clear()  # the browser reports it, as it should
