"""Latency of live updates: from a log call to the server's stream, and to an open page if there is a browser.

A trainer logs its row number ten times a second. A client follows the stream, and requests the points after each update
like the page. ``python benchmarks/live.py [--rows 200] [--rate 10]``
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import urllib3
from delivery import serving
from rich.console import Console
from rich.table import Table

import tensormeter
from tensormeter.agent.run_directory.directory import list_runs

sys.path += [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "ui")]

PROJECT, RUN = "bench", "live"
WARM_ROWS = 50
"""Rows at the start that do not count: the agent learns from an answer that the run has viewers."""

WATCH_CHART = """() => {
  window.seen = [];
  const note = () => {
    const text = document.querySelector(".last")?.textContent ?? "";
    if (text !== window.seen.at(-1)?.[0]) window.seen.push([text, Date.now() / 1000]);
  };
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def follow(url: str, seen: dict[int, float], over: threading.Event) -> None:
    """Follow the run's stream, and store the time at which each row was first returned."""
    pool = urllib3.PoolManager()
    stream = pool.request("GET", f"{url}/api/v1/stream?runs={PROJECT}/{RUN}", preload_content=False, timeout=60)
    query: dict[str, object] = {"runs": [f"{PROJECT}/{RUN}"], "metrics": ["row"], "x": "step"}
    for line in _lines(stream):
        if over.is_set():
            return
        if not line.startswith("data:") or '"row"' not in line:
            continue
        answer = pool.request("POST", f"{url}/api/v1/query", json=query).json()
        now, query["after"] = time.time(), answer["cursor"]
        for series in answer["series"]:
            for value in series["y"]:
                seen.setdefault(int(value), now)


def _lines(stream: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = ""
    while chunk := stream.read1():
        *lines, rest = (rest + chunk.decode()).split("\n")
        yield from lines


@contextmanager
def page_of(url: str) -> Iterator[dict[int, float]]:
    """Open the run's page, and yield a dictionary that contains the time at which each row was shown after the block."""
    seen: dict[int, float] = {}
    try:
        from live_server import CHROMIUM, FLAGS
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield seen
        return
    if CHROMIUM is None:
        yield seen
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(f"{url}/#/p/{PROJECT}/runs/{RUN}?q=row")
        page.wait_for_selector(".last", timeout=60_000)
        page.evaluate(WATCH_CHART)
        yield seen
        for text, at in page.evaluate("() => window.seen"):
            if text.replace(",", "").isdigit():
                seen.setdefault(int(text.replace(",", "")), at)
        browser.close()


def delays(logged: Mapping[int, float], seen: Mapping[int, float]) -> list[float]:
    """Return the seconds until each row, or a later one, was seen. A page may skip rows that are soon replaced."""
    waits, earliest = [], float("inf")
    for row in sorted(logged, reverse=True):
        earliest = min(earliest, seen.get(row, float("inf")))
        if row >= WARM_ROWS and earliest < float("inf"):
            waits.append(earliest - logged[row])
    return waits


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10.0)
    arguments = parser.parse_args()
    table = Table(title=f"From log to sight, {arguments.rate:g} rows per second")
    for column in ("", "p50", "p99", "rows"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory(prefix="tensormeter-bench-") as name, serving(Path(name)) as url:
        state = Path(name, "state")
        run = tensormeter.init(PROJECT, id=RUN, settings={"directory": state, "endpoint": url, "sample_interval": 0})
        run.log({"row": 0}, 0)
        while urllib3.request("GET", f"{url}/api/v1/runs/{RUN}/series?metric=row").status != 200:
            threading.Event().wait(0.1)
        (directory,) = list_runs(state)
        agent = psutil.Process(directory.agent_pid())
        streamed: dict[int, float] = {}
        logged: dict[int, float] = {}
        over = threading.Event()
        threading.Thread(target=follow, args=(url, streamed, over), daemon=True).start()
        with page_of(url) as shown:
            begun, before = time.monotonic(), sum(agent.cpu_times()[:2])
            for row in range(1, arguments.rows + WARM_ROWS):
                logged[row] = time.time()
                run.log({"row": row}, row)
                threading.Event().wait(max(0.0, begun + row / arguments.rate - time.monotonic()))
            used = (sum(agent.cpu_times()[:2]) - before) / (time.monotonic() - begun)
            threading.Event().wait(3)
        over.set()
        run.finish()
    for who, seen in (("stream", streamed), ("page", shown)):
        waits = delays(logged, seen)
        if waits:
            p50, p99 = np.percentile(waits, [50, 99])
            table.add_row(who, f"{p50:.2f} s", f"{p99:.2f} s", str(len(waits)))
    console = Console(width=110)
    console.print(table)
    console.print(f"the agent used {used:.1%} of a core")


if __name__ == "__main__":
    main()
