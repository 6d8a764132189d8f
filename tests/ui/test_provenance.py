"""Code and artifacts of a run: panels of the overview, and marks of charts."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from playwright.sync_api import expect
from sample_runs import GIT, HOSTILE, SECOND, Sender, code_body, send_artifact, send_artifacts

STEPS = 100


def ten_minutes_ago() -> int:
    return time.time_ns() - 600 * SECOND


def send_run(post: Any, run: str, git: dict[str, Any], **code: Any) -> Sender:
    """Send a run with 100 steps and its code."""
    sender = Sender(post, "provenance", run, f"run {run}", host__name="gpu-node-17", tensormeter__rank=0)
    start = ten_minutes_ago()
    sender.event("run.start", start, {"config": {"lr": 3e-4}})
    steps = np.arange(STEPS)
    sender.rows(start + steps * SECOND, steps, {"train/loss": 1 / (steps + 1), "eval/accuracy": 1 - 1 / (steps + 1)})
    sender.event("run.code", start, code_body(git) | code)
    return sender


def test_the_overview_shows_code_and_artifacts(open_tab: Any, site: Any) -> None:
    sender = send_run(site.post, "code", GIT)
    send_artifacts(sender, ten_minutes_ago())
    tab = open_tab(site.url, permissions=["clipboard-read", "clipboard-write"])
    page = tab.go("#/p/provenance/runs/code/overview")
    code = page.get_by_role("region", name="Code", exact=True)
    expect(code).to_contain_text(GIT["commit"][:12])
    expect(code).to_contain_text("uncommitted changes in 1 file")
    expect(code.get_by_role("link", name=GIT["remote"])).to_have_attribute("href", GIT["remote"])
    code.get_by_role("button", name="Copy the commit").click()
    expect(code.get_by_role("button", name="Copy the commit")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == GIT["commit"]
    expect(code.locator("details[open]")).to_have_count(0)
    expect(code.locator("pre")).to_have_count(0)  # nothing is built before it is opened
    code.get_by_text("Uncommitted changes", exact=True).click()
    expect(code.locator(".added")).to_have_text("+lr = 3e-4\n+warmup = 200\n")
    code.locator("summary", has_text="Source").click()
    expect(code.get_by_role("region", name="Source")).to_have_text(code_body(GIT)["source"]["text"])
    code.locator("summary", has_text="Packages").click()
    code.get_by_role("searchbox").fill("TORCH")
    expect(code.get_by_role("region", name="Packages").locator("tr")).to_have_text(["torch2.9.0"])

    rows = page.get_by_role("region", name="Artifacts", exact=True).locator("tbody tr")
    expect(rows).to_have_count(7)
    row = rows.filter(has_text="best.pt")
    expect(row).to_contain_text("97.7 MiB")
    expect(row).to_contain_text("digest pending")
    expect(row.locator(".tag")).to_have_text(["best", "latest"])
    commands = [button.get_attribute("title") for button in rows.get_by_role("button").all()]
    assert commands[0] == "aws s3 cp s3://models/vision/final.safetensors ."
    assert any((command or "").startswith('torch.load("/checkpoints/vision/') for command in commands)
    assert any((command or "").startswith("cp -r /checkpoints/vision/") for command in commands)
    expect(rows.filter(has_text="gone.pt")).to_contain_text("no digest: it does not exist")
    sender.event("heartbeat", time.time_ns(), {})
    expect(code.locator("details[open]")).to_have_count(3)  # updates leave what is open


def test_charts_mark_artifacts(tab: Any, site: Any, eventually: Callable[..., Any]) -> None:
    send_artifacts(send_run(site.post, "marks", GIT), ten_minutes_ago())
    page = tab.go("#/p/provenance/runs/marks")
    card = tab.card("train/loss")
    tab.settle()
    tooltip = tab.hover(card, 40 / (STEPS - 1))
    expect(tooltip.locator(".mark")).to_have_text("step-40.pt 97.7 MiB")
    tooltip = tab.hover(card, 50 / (STEPS - 1))
    expect(tooltip.locator(".mark")).to_have_count(0)
    page.goto(f"{site.url}/#/p/provenance/runs/marks?x=relative")
    card = tab.card("train/loss")
    tab.settle()

    def is_marked() -> bool:  # the chart may be drawn again for the other axis after the pointer has moved
        marks = tab.hover(card, 80 / (STEPS - 1)).locator(".mark").all_text_contents()
        return marks == ["best.pt best, latest · 97.7 MiB"]

    eventually(is_marked)


def test_hostile_code_is_shown_as_text(tab: Any, site: Any) -> None:
    git = GIT | {"branch": HOSTILE, "remote": "javascript:window.hacked=1", "diff": f"+{HOSTILE}\n"}
    sender = send_run(site.post, "hostile", git, packages={HOSTILE: HOSTILE}, gpus=[HOSTILE])
    send_artifact(
        sender, HOSTILE, 50, ten_minutes_ago() + 50 * SECOND, path=f"/tmp/{HOSTILE}; rm -rf ~", aliases=[HOSTILE]
    )
    send_artifact(sender, "escape", 50, ten_minutes_ago() + 50 * SECOND, path="/tmp/a\nrm -rf ~")
    send_artifact(sender, "masked", 50, ten_minutes_ago() + 50 * SECOND, uri="https://***@example.com/a")
    sender.event("artifact", time.time_ns(), ["not", "an object"])
    page = tab.go("#/p/provenance/runs/hostile/overview")
    code = page.get_by_role("region", name="Code", exact=True)
    expect(code).to_contain_text(HOSTILE)
    expect(code).to_contain_text("javascript:window.hacked=1")
    expect(code.get_by_role("link")).to_have_count(0)
    for summary in code.locator("summary").all():
        summary.click()
    rows = page.get_by_role("region", name="Artifacts", exact=True).locator("tbody tr")
    expect(rows).to_have_count(4)
    (command,) = [button.get_attribute("title") for button in rows.get_by_role("button").all()]
    quoted = HOSTILE.replace("'", "'\\''")
    assert command == f"cp '/tmp/{quoted}; rm -rf ~' ."
    assert page.evaluate("window.hacked") is None
