"""Tests of the logs of runs: the list, live lines, search, filters, details, and the page of a failed run."""

import itertools
import re
import time
from typing import Any

from playwright.sync_api import expect
from sample_logs import LONG, TRACEBACK, logged, printed
from sample_runs import SECOND, Sender

LONG_LOG = "#/p/console/runs/long/logs"
RANKS = "#/p/console/runs/ranks/logs"
AT_END = "(log) => log.scrollTop + log.clientHeight >= log.scrollHeight - 4"


def number(line: Any) -> int:
    """The number of a line of the run `long`."""
    return int(re.search(r"line (\d+)", line.text_content())[1])


def test_a_long_log_shows_its_end_and_loads_older_lines_in_order(tab: Any) -> None:
    page = tab.go(LONG_LOG)
    log = page.get_by_role("region", name="Log")
    expect(log.locator(".line").last).to_contain_text(f"line {LONG - 1:05}")
    assert log.evaluate(AT_END)
    expect(page.locator(".log-status")).to_contain_text("30,000 lines")
    for _ in range(5):
        first = number(log.locator(".line").first)
        log.evaluate("(log) => { log.scrollTop = 0; }")
        page.wait_for_function(
            "(first) => Number(document.querySelector('.log .line').textContent.match(/line (\\d+)/)[1]) < first",
            arg=first,
        )
    tab.settle()
    numbers = [number(line) for line in log.locator(".line").all()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(numbers) < 120
    page.get_by_role("button", name="↓ Newest").click()
    page.wait_for_function(f"() => ({AT_END})(document.querySelector('.log'))")
    expect(log.locator(".line").last).to_contain_text(f"line {LONG - 1:05}")


def test_search_goes_to_matches_that_are_not_loaded(tab: Any) -> None:
    page = tab.go(LONG_LOG)
    log, field = page.get_by_role("region", name="Log"), page.get_by_label("Search the log")
    field.fill("NEEDLE")
    for expected in (28_017, 21_017, 14_017):
        field.press("Enter")
        expect(log.locator(".line.current")).to_contain_text(f"line {expected}")
    expect(log.locator(".line.current mark")).to_have_text("needle")
    page.get_by_role("button", name="Next match").click()
    expect(log.locator(".line.current")).to_contain_text("line 21017")
    page.get_by_label("only matches").check()
    expect(log.locator(".line")).to_have_count(5)
    expect(log.locator(".line").first).to_contain_text("line 00017")
    expect(page.locator(".find output")).to_have_text("5")
    assert "only=1" in page.url
    field.fill("no such text")
    expect(page.get_by_text("No matching lines")).to_be_visible()


def test_new_lines_appear_and_the_list_lets_go_when_scrolled(tab: Any, site: Any) -> None:
    sender = Sender(site.post, "console", "live", "live", host__name="n")
    now = time.time_ns()
    sender.event("run.start", now)
    sender.lines(*(printed(f"early {i}", now + i) for i in range(200)))
    page = tab.go("#/p/console/runs/live/logs")
    log = page.get_by_role("region", name="Log")
    expect(log.locator(".line").last).to_contain_text("early 199")
    with page.expect_request(re.compile("since=")):
        sender.lines(printed("first news", now + SECOND))
    expect(log.locator(".line").last).to_contain_text("first news")
    expect(page.locator(".log-status")).to_contain_text("following")
    sender.lines(printed("late line", now + 195))
    expect(log.locator(".line", has_text="late line")).to_be_visible()
    assert log.evaluate(AT_END)
    log.hover()
    page.mouse.wheel(0, -2000)
    newest = page.get_by_role("button", name="↓ Newest")
    expect(newest).to_be_visible()
    tab.settle()
    shown = log.locator(".line").first.text_content()
    sender.lines(printed("second news", now + 2 * SECOND))
    expect(page.locator(".log-status")).to_contain_text("203 lines")
    assert log.locator(".line").first.text_content() == shown
    newest.click()
    expect(log.locator(".line").last).to_contain_text("second news")
    expect(newest).to_be_hidden()


def test_filters_are_in_the_address(tab: Any) -> None:
    page = tab.go(RANKS)
    log = page.get_by_role("region", name="Log")
    expect(log.locator(".line").last).to_contain_text("step")
    page.get_by_label("Lowest level").select_option("13")
    expect(log.locator(".line")).to_have_count(3)
    expect(log.locator(".line.warn .level")).to_have_text("WARN")
    expect(log.locator(".line.stderr .level")).to_have_count(0)
    page.get_by_label("Rank").select_option("3")
    expect(log.locator(".line")).to_have_count(1)
    page.get_by_label("Lowest level").select_option("")
    expect(log.locator(".line")).to_have_count(3)
    page.get_by_label("Rank").select_option("")
    page.get_by_label("Source").select_option("stderr")
    expect(log.locator(".line")).to_have_count(1)
    expect(log.locator(".text")).to_have_text("Loading checkpoint shards: 100%|##########| 4/4 [00:09<00:00]")
    page.get_by_label("Times").select_option("relative")
    expect(log.locator(".when")).to_have_text("+00:10.0")
    assert {"stream=stderr", "times=relative"} <= set(page.url.partition("?")[2].split("&"))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "llama-1b-calm.log"
    content = download.value.path().read_text()
    assert re.fullmatch(r"[-\d]{10} [:.\d]{12} \[r0\] Loading checkpoint shards: 100%.*\n", content)
    page.reload()
    expect(log.locator(".line")).to_have_count(1)


def test_a_line_opens_its_fields_and_has_an_address(tab: Any) -> None:
    page = tab.go(f"{RANKS}?level=17")
    line = page.locator(".log .line")
    expect(line.locator(".text")).to_contain_text("data loader worker 2 did not answer in time; retrying +2 lines")
    line.get_by_role("button", name="Details of the line").press("Enter")
    expect(line).to_contain_text("shard: s3://corpus/train/00731.tar")
    for text in ("data.loader", "exception.type", "TimeoutError", "code.line.number"):
        expect(line.locator(".record")).to_contain_text(text)
    address = line.get_by_role("link", name="Link to this line").get_attribute("href")
    line.locator(".text").click()
    expect(line.locator(".record")).to_have_count(0)
    identifier = re.search(r"line=([-\d]+)", address)[1]
    tab.go(f"{RANKS}?line={identifier}")
    expect(page.locator(".line.current .text")).to_contain_text("data loader worker 2")
    expect(page.locator(".line").first).to_contain_text("step")
    other = page.locator(".line:not(.current)").first
    text, identifier = other.locator(".text").text_content(), other.get_attribute("data-id")
    tab.go(f"{RANKS}?line={identifier}")
    expect(page.locator(".line.current .text")).to_have_text(text)


def test_wrapped_lines_have_their_own_heights(tab: Any, site: Any) -> None:
    sender = Sender(site.post, "console", "wide", "wide lines")
    now = time.time_ns()
    sender.event("run.start", now)
    sender.lines(*(printed(f"{i:03} " + "word " * (i % 5 * 60), now + i) for i in range(300)))
    page = tab.go("#/p/console/runs/wide/logs?wrap=1")
    log = page.get_by_role("region", name="Log")
    expect(log.locator(".line").last).to_contain_text("299")
    tab.settle()
    assert log.evaluate(AT_END)
    log.evaluate("(log) => { log.scrollTop = log.scrollHeight / 2; }")
    tab.settle()
    boxes = log.locator(".line").evaluate_all("(all) => all.map((line) => [line.offsetTop, line.offsetHeight])")
    assert all(abs(top + height - following) <= 1 for (top, height), (following, _) in itertools.pairwise(boxes))
    assert len({height for _, height in boxes}) > 2
    assert log.evaluate("(log) => log.scrollWidth <= log.clientWidth")


def test_a_failed_run_shows_its_exception_first(tab: Any) -> None:
    page = tab.go("#/p/console/runs/broken")
    banner = page.locator(".banner.bad")
    expect(banner).to_contain_text("torch.OutOfMemoryError: CUDA out of memory.")
    banner.get_by_role("link", name="Show the traceback").click()
    panel = page.locator(".overview > section").first
    expect(panel.locator("h2")).to_have_text(re.compile(r"^torch\.OutOfMemoryError: CUDA out of memory\..*79\.11 GiB$"))
    traceback = panel.get_by_label("Traceback")
    assert traceback.text_content() == "\n".join(TRACEBACK.splitlines()[-15:])
    panel.get_by_role("button", name="Show 6 earlier lines").click()
    assert traceback.text_content() == TRACEBACK
    last = panel.get_by_label("Last lines of the log").text_content().splitlines()
    assert last[-2:] == ["epoch 0, step 39: loss 6.510", "memory is nearly full: 77.9 of 79.1 GiB"]
    panel.get_by_role("link", name="Open the log").click()
    expect(page.locator(".log .line").last).to_contain_text("Process 4711")


def test_an_empty_log_says_what_appears_in_it(tab: Any, site: Any) -> None:
    page = tab.go("#/p/vision/runs/vis01/logs")
    expect(page.get_by_text("No log lines yet")).to_be_visible()
    sender = Sender(site.post, "vision", "vis01", "", process="logger")
    sender.lines(logged("here it is", time.time_ns(), "app", 13, "WARNING"))
    expect(page.locator(".log .line.warn")).to_contain_text("here it is")
    expect(page.get_by_text("No log lines yet")).to_be_hidden()
