"""One server and one browser for all tests of the page; each test has a page of its own, and no error may occur in it."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import CHROMIUM, FLAGS, FRAMES, LiveServer, sample_server
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright
from sample_runs import send_gallery, send_hostile, send_wide

SECONDS = 120
"""Machines that run many tests at once can be very slow."""

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
    """A server with a gallery of runs, a wide project and a hostile one."""
    server = sample_server(tmp_path_factory.mktemp("site"), send_gallery, send_hostile, send_wide)
    yield server
    server.stop()


@pytest.fixture
def tab(open_tab: Callable[..., "Tab"], site: LiveServer) -> "Tab":
    """A fresh page at the server; at the end nothing may have gone wrong in it."""
    return open_tab(site.url)


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., "Tab"]]:
    """Opens pages anywhere, with options for the browser's context."""
    tabs: list[Tab] = []

    def open_tab(url: str, **options: Any) -> Tab:
        tabs.append(Tab(browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options)), url))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.close()


class Tab:
    """A page in a browser, with what it asked for and what went wrong."""

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
        # Playwright leaves a mark on its handlers, which a built-in method does not take.
        self.page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108
        self.page.on("requestfinished", lambda request: self.answered.add(request))  # noqa: PLW0108
        self.page.on("requestfailed", lambda request: self.answered.add(request))  # noqa: PLW0108

    def close(self) -> None:
        """Close the page, and fail if anything went wrong in it."""
        errors, requests = list(self.errors), list(self.requests)
        self.context.close()
        assert errors == []
        elsewhere = {request.url for request in requests if not request.url.startswith((self.url, "blob:", "data:"))}
        assert elsewhere == set()

    def go(self, address: str) -> Page:
        """Show an address of the page, from its `#` on."""
        self.page.goto(f"{self.url}/{address}")
        return self.page

    def settle(self) -> None:
        """Wait until every answer that was asked for is there and drawn, so that nothing moves any more."""
        deadline = time.monotonic() + SECONDS
        while True:
            self.page.evaluate(FRAMES)
            pending = [request for request in self.requests if request not in self.answered]
            if all("/stream" in request.url for request in pending):
                return
            assert time.monotonic() < deadline, [request.url for request in pending]

    def hover(self, card: Any, share: float = 0.5) -> Any:
        """Put the pointer on a chart, at a share of its width; the box with the values.

        The pointer moves until the box is there: a banner or a legend that comes meanwhile moves the chart away from it.
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
            assert time.monotonic() < deadline, "no box with values at the pointer"

    def drag(self, card: Any, start: float, stop: float) -> None:
        """Draw the pointer over a part of a chart."""
        self.settle()
        over = card.locator(".u-over")
        width = over.bounding_box()["width"]
        over.hover(position={"x": width * start, "y": 60})
        self.page.mouse.down()
        for share in ((start + stop) / 2, stop):
            over.hover(position={"x": width * share, "y": 60})
        self.page.mouse.up()

    def card(self, title: str) -> Any:
        """The frame of a chart, once it is drawn."""
        card = self.page.locator(f'.card[aria-label="{title}"]')
        card.scroll_into_view_if_needed()
        expect(card).to_have_attribute("data-drawn", re.compile(r"\d+"))
        return card

    def asked(self, part: str) -> list[Request]:
        """Requests with this in their address."""
        return [request for request in self.requests if part in request.url]
