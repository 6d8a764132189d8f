"""Tests of special states: no data, errors, missing token, lost connection. Each text explains what to do next."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer
from playwright.sync_api import expect
from sample_runs import HOSTILE, Sender

from support.processes import run_python

TOKEN = "a-token-of-the-test"


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path)
    yield server
    server.stop()


def test_welcome_code_logs_a_run(empty: LiveServer, open_tab: Callable[..., Any], tmp_path: Path) -> None:
    tab = open_tab(empty.url)
    page = tab.go("")
    expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
    code = page.locator("pre.code").last.inner_text()
    assert len(code.strip().splitlines()) <= 10
    environment = {
        "PATH": "/usr/bin:/bin",
        "TENSORMETER_ENDPOINT": empty.url,
        "TENSORMETER_DIR": str(tmp_path / "trainer"),
        "TENSORMETER_BUFFER_DIR": str(tmp_path / "rings"),
        "TENSORMETER_AGENT": "thread",
    }
    run_python("-c", code, environment=environment, check=True)
    page.get_by_role("link", name="demo 1 run").click()
    page.locator(".rows .row a").first.click()
    tab.card("train/loss")
    tab.card("eval/accuracy")


def test_token_is_requested_and_kept_for_the_tab(tmp_path: Path, open_tab: Callable[..., Any]) -> None:
    server = LiveServer(tmp_path, token=TOKEN)
    try:
        Sender(server.post, "secret", "s1", "hidden").event("run.start", 10**18, {"config": {}})
        tab = open_tab(server.url)
        page = tab.go("#/p/secret")
        page.get_by_label("Access token").fill("wrong")
        page.get_by_role("button", name="Continue").click()
        page.get_by_label("Access token").fill(TOKEN)
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_text("1 run", exact=True)).to_be_visible()
        page.reload()
        expect(page.get_by_text("1 run", exact=True)).to_be_visible()
        assert TOKEN not in page.content()
        assert not any(TOKEN in request.url for request in tab.requests)
        assert all("401" in error for error in tab.errors)
        tab.errors.clear()
    finally:
        server.stop()


def test_damaged_store_shows_a_banner(tmp_path: Path, open_tab: Callable[..., Any]) -> None:
    server = LiveServer(tmp_path)
    steps = np.arange(50)
    for run in ("whole", "spoilt"):
        sender = Sender(server.post, "vision", run, run)
        sender.rows(10**18 + steps * 10**9, steps, {"loss": steps / 7, "lr": steps / 3})
    server.stop()
    with closing(sqlite3.connect(tmp_path / "server" / "tensormeter.db", isolation_level=None)) as database:
        database.execute(
            "UPDATE chunk SET words = zeroblob(9) WHERE series = (SELECT min(id) FROM series WHERE metric = 'loss')"
        )
        database.execute("UPDATE run SET notes = 'changed' WHERE run_id = 'spoilt'")
    server = LiveServer(tmp_path)
    try:
        tab = open_tab(server.url)
        page = tab.go("#/p/vision")
        expect(page.get_by_role("alert").first).to_contain_text("the texts of run 'spoilt'")
        expect(page.get_by_text("whole", exact=True).first).to_be_visible()
        page = tab.go("#/p/vision/runs/whole")
        tab.card("lr")
        expect(page.get_by_role("alert").first).to_contain_text("store is damaged")
        tab.errors.clear()
    finally:
        server.stop()


def test_unknown_run_links_to_projects(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/unknown")
    expect(page.get_by_role("heading", name="Run not found")).to_be_visible()
    page.get_by_role("link", name="All projects").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    assert all("404" in error for error in tab.errors)
    tab.errors.clear()


def test_project_without_runs_shows_how_to_log_one(tab: Any) -> None:
    page = tab.go("#/p/brand-new")
    expect(page.locator("pre.code").last).to_contain_text('project="brand-new"')


def test_failed_run_names_the_first_failed_rank(site: Any, open_tab: Callable[..., Any]) -> None:
    began = time.time_ns() - 7200 * 10**9
    ends = {
        0: ("preempted", "SIGTERM", 2),
        1: ("failed", "RuntimeError", 3),
        2: ("crashed", HOSTILE, 1),
        3: ("finished", "", 0),
    }
    for rank, (state, message, after) in ends.items():
        named = {"tensormeter__rank": rank, "host__name": f"node{rank}"}
        sender = Sender(site.post, "ends", "e1", "four ranks", f"p{rank}", **named)
        sender.event("run.start", began, {"config": {"a": 1}})
        steps = np.arange(3, dtype=np.int64)
        sender.rows(began + steps, steps, {"loss": steps, "cpython.gc.collections": steps})
        sender.event("run.end", began + after * 10**9, {"state": state, "message": message})
    single = Sender(site.post, "ends", "e2", "one")
    single.event("run.start", began, {"config": {"a": 2}})
    single.event("run.end", began + 10**9, {"state": "failed", "message": "ValueError"})
    tab = open_tab(site.url)
    tab.page.clock.set_fixed_time(time.time() + 2 * 3600 + 60)
    page = tab.go("#/p/ends/runs/e1")
    banner = page.locator(".banner.bad")
    expect(banner).to_contain_text(f"First: rank 2 on node2 crashed ({HOSTILE})")
    expect(banner).to_contain_text("later: 1 failed, 1 preempted.")
    expect(page.locator(".health .facts")).to_contain_text("2h ago")
    page = tab.go("#/p/ends/runs/e2")
    expect(banner).to_have_text("failed The script ended with an error. ValueError.")
    page = tab.go("#/p/ends")
    expect(page.get_by_role("columnheader", name="loss").first).to_be_visible()
    expect(page.get_by_role("columnheader", name="cpython")).to_have_count(0)


def test_a_killed_process_is_described_once(site: Any, open_tab: Callable[..., Any]) -> None:
    now = time.time_ns()
    sender = Sender(site.post, "killed", "k1", "killed")
    sender.event("run.start", now, {"config": {}})
    sender.event("run.end", now + 1, {"state": "crashed", "message": "the process ended without finishing the run"})
    page = open_tab(site.url).go("#/p/killed/runs/k1")
    said = "crashed The process ended without finishing the run (crash or kill)."
    expect(page.locator(".banner.bad")).to_have_text(said)
    page.wait_for_function(
        "() => performance.getEntriesByType('resource').some((entry) => entry.name.includes('run.end'))"
    )
    expect(page.locator(".banner.bad")).to_have_text(said)


def test_one_banner_names_the_first_value_that_is_not_finite(site: Any, open_tab: Callable[..., Any]) -> None:
    now = time.time_ns()
    sender = Sender(site.post, "alerts", "a1", "diverged")
    sender.event("run.start", now, {"config": {}})
    alerts = [("spike", "lr"), ("nan", "loss"), ("nan", "eval"), ("threshold", "tensormeter.dropped")]
    for number, (kind, metric) in enumerate(alerts):
        sender.event("alert", now + number, {"kind": kind, "metric": metric, "message": f"{metric}: odd"})
    sender.event("run.end", now + 9, {"state": "finished", "dropped": {"ring_full": 5}})
    page = open_tab(site.url).go("#/p/alerts/runs/a1")
    expect(page.locator(".banner", has_text="Not finite")).to_contain_text("loss: odd and 2 more (see Overview)")
    expect(page.locator(".banner", has_text="Data was lost")).to_have_count(1)
    expect(page.locator(".banner")).to_have_count(2)


def test_a_run_without_metrics_and_a_lost_connection(tmp_path: Path, open_tab: Callable[..., Any]) -> None:
    server = LiveServer(tmp_path)
    sender = Sender(server.post, "p", "r1", "r")
    sender.event("run.start", 10**18, {"config": {"a": 1}})
    tab = open_tab(server.url)
    page = tab.go("#/p/p/runs/r1")
    expect(page.get_by_role("heading", name="No metrics yet")).to_be_visible()
    Sender(server.post, "p", "r2", "r").event("run.start", 10**18, {"config": {}})
    Sender(server.post, "p", "r2", "r").event("run.end", 10**18 + 1, {"state": "finished"})
    page = tab.go("#/p/p/runs/r2")
    expect(page.get_by_role("heading", name="No metrics", exact=True)).to_be_visible()
    expect(page.get_by_text("Charts appear here")).to_have_count(0)
    page = tab.go("#/p/p/runs/r1")
    expect(page.get_by_role("heading", name="No metrics yet")).to_be_visible()
    server.stop()
    expect(page.get_by_role("alert").filter(has_text="Not live")).to_be_visible()
    page.evaluate("() => { location.hash = '#/'; }")
    expect(page.get_by_role("heading", name="Server not reachable")).to_be_visible()
    tab.errors.clear()  # refused connections


def test_unconfirmed_attempt_number_is_marked_provisional(site: Any, open_tab: Callable[..., Any]) -> None:
    now = time.time_ns()
    named = {"tensormeter__run__attempt": 2, "tensormeter__run__attempt__provisional": True}
    sender = Sender(site.post, "attempts", "a1", "resumed", **named)
    sender.event("run.start", now, {"config": {}})
    sender.rows(now + np.arange(3, dtype=np.int64), np.arange(3, dtype=np.int64), {"loss": np.arange(3)})
    page = open_tab(site.url).go("#/p/attempts/runs/a1")
    expect(page.locator(".health .facts")).to_contain_text("2, provisional")
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_text("2, provisional: attempts on other machines may have the same number")).to_be_visible()
