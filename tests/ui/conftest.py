"""Fixtures of the page's tests: a shared server and browser, and a fresh page per test that must stay free of errors."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import CHROMIUM, FLAGS, FRAMES, LiveServer, sample_server
from playwright.sync_api import Browser, BrowserContext, Download, Page, Request, expect, sync_playwright
from sample_logs import send_logs
from sample_runs import send_gallery, send_hostile, send_wide

SECONDS = 120
"""Timeout in seconds. Machines that run many tests at once can be very slow."""

expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with sample runs, a wide project, a project with hostile names, and one with logs."""
    server = sample_server(tmp_path_factory.mktemp("site"), send_gallery, send_hostile, send_wide, send_logs)
    yield server
    server.stop()


@pytest.fixture
def tab(open_tab: Callable[..., "Tab"], site: LiveServer) -> "Tab":
    """A fresh page of the server. The test fails if an error occurs in it."""
    return open_tab(site.url)


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., "Tab"]]:
    """A function that opens pages of any server, with options for the browser context."""
    tabs: list[Tab] = []

    def open_tab(url: str, **options: Any) -> Tab:
        tabs.append(Tab(browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options)), url))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.close()


class Tab:
    """A page in a browser, with its requests and errors."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.context = context
        self.errors: list[str] = []
        self.requests: list[Request] = []
        self.answered: set[Request] = set()
        self.page: Page = context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        # Playwright sets an attribute on its handlers, which built-in methods do not allow.
        self.page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108
        self.page.on("requestfinished", lambda request: self.answered.add(request))  # noqa: PLW0108
        self.page.on("requestfailed", lambda request: self.answered.add(request))  # noqa: PLW0108

    def close(self) -> None:
        """Close the page, and fail if there were errors or requests to other hosts."""
        errors, requests = list(self.errors), list(self.requests)
        self.context.close()
        assert errors == []
        elsewhere = {request.url for request in requests if not request.url.startswith((self.url, "blob:", "data:"))}
        assert elsewhere == set()

    def go(self, address: str) -> Page:
        """Open an address of the page, which starts with `#`."""
        self.page.goto(f"{self.url}/{address}")
        return self.page

    def settle(self) -> None:
        """Wait until all responses have arrived and are drawn, so that the layout is final."""
        deadline = time.monotonic() + SECONDS
        while True:
            self.page.evaluate(FRAMES)
            pending = [request for request in self.requests if request not in self.answered]
            if all("/stream" in request.url for request in pending):
                return
            assert time.monotonic() < deadline, [request.url for request in pending]

    def hover(self, card: Any, share: float = 0.5) -> Any:
        """Move the pointer to a chart, at a share of its width, and return the tooltip.

        The pointer moves until the tooltip is visible, because a new banner or legend can move the chart away from it.
        """
        over, tooltip = card.locator(".u-over"), self.page.locator(".tooltip")
        deadline = time.monotonic() + SECONDS
        while True:
            width = over.bounding_box()["width"]
            for aside in (3, 0):
                over.hover(position={"x": max(1, width * share - aside), "y": 40})
            self.page.evaluate(FRAMES)
            if tooltip.is_visible():
                return tooltip
            assert time.monotonic() < deadline, "no tooltip at the pointer"

    def drag(self, card: Any, start: float, stop: float) -> None:
        """Drag the pointer over a part of a chart, given as shares of its width."""
        self.settle()
        over = card.locator(".u-over")
        width = over.bounding_box()["width"]
        over.hover(position={"x": width * start, "y": 60})
        self.page.mouse.down()
        for share in ((start + stop) / 2, stop):
            over.hover(position={"x": width * share, "y": 60})
        self.page.mouse.up()

    def card(self, title: str) -> Any:
        """The card of a chart, after it has been drawn."""
        card = self.page.locator(f'.card[aria-label="{title}"]')
        card.scroll_into_view_if_needed()
        expect(card).to_have_attribute("data-drawn", re.compile(r"\d+"))
        return card

    def save(self, card: Any, kind: str) -> Download:
        """Save a chart with its menu, as "CSV", "PNG" or "SVG"."""
        with self.page.expect_download() as download:
            card.locator("summary").click()
            card.get_by_role("menuitem", name=kind).click()
        return download.value

    def asked(self, part: str) -> list[Request]:
        """Requests whose address contains `part`."""
        return [request for request in self.requests if part in request.url]
