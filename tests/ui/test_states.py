"""Nothing there yet, something wrong, nobody let in: each says what to do next."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from playwright.sync_api import expect
from sample_runs import Sender

TOKEN = "a-token-of-the-test"


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path)
    yield server
    server.stop()


def test_the_ten_lines_of_a_first_visit_make_data(
    empty: LiveServer, open_tab: Callable[..., Any], tmp_path: Path
) -> None:
    tab = open_tab(empty.url)
    page = tab.go("")
    expect(page.get_by_role("heading", name="Nothing here yet")).to_be_visible()
    code = page.locator("pre.code").last.inner_text()
    assert len(code.strip().splitlines()) <= 10
    environment = {
        "PATH": "/usr/bin:/bin",
        "TENSORMETER_ENDPOINT": empty.url,
        "TENSORMETER_DIR": str(tmp_path / "trainer"),
        "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings"),
        "TENSORMETER_AGENT": "thread",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300, capture_output=True)
    page.get_by_role("link", name="demo 1 run").click()
    page.locator(".rows .row a").first.click()
    tab.card("train/loss")
    tab.card("eval/accuracy")


def test_a_token_is_asked_for_and_kept_for_the_tab(tmp_path: Path, open_tab: Callable[..., Any]) -> None:
    server = LiveServer(tmp_path, token=TOKEN)
    try:
        Sender(server.post, "secret", "s1", "hidden").event("run.start", 10**18, {"config": {}})
        tab = open_tab(server.url)
        page = tab.go("#/p/secret")
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Go on").click()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text("1 run", exact=True)).to_be_visible()
        page.reload()
        expect(page.get_by_text("1 run", exact=True)).to_be_visible()
        assert TOKEN not in page.content()
        assert not any(TOKEN in request.url for request in tab.requests)
        assert all("401" in error for error in tab.errors)
        tab.errors.clear()
    finally:
        server.stop()


def test_an_unknown_run_leads_back(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/nobody")
    expect(page.get_by_role("heading", name="There is no such thing here")).to_be_visible()
    page.get_by_role("link", name="All projects").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    assert all("404" in error for error in tab.errors)
    tab.errors.clear()


def test_a_project_without_runs_shows_how_to_make_one(tab: Any) -> None:
    page = tab.go("#/p/brand-new")
    expect(page.locator("pre.code").last).to_contain_text('project="brand-new"')


def test_a_server_that_goes_away_is_told_and_nothing_is_lost(tmp_path: Path, open_tab: Callable[..., Any]) -> None:
    server = LiveServer(tmp_path)
    sender = Sender(server.post, "p", "r1", "r")
    sender.event("run.start", 10**18, {"config": {"a": 1}})
    tab = open_tab(server.url)
    page = tab.go("#/p/p/runs/r1")
    expect(page.get_by_role("heading", name="Nothing was logged yet")).to_be_visible()
    server.stop()
    expect(page.get_by_role("alert").filter(has_text="Not live")).to_be_visible()
    page.evaluate("() => { location.hash = '#/'; }")
    expect(page.get_by_role("heading", name="The server does not answer")).to_be_visible()
    tab.errors.clear()  # refused connections
