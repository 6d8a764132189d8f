"""Code and artifacts of a run: panels of the overview, and marks of charts."""

import time
from typing import Any

import numpy as np
from playwright.sync_api import expect
from sample_runs import HOSTILE, SECOND, Sender

COMMIT = "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"
SOURCE = "import torch\n\nfor step in range(100):\n\tprint('<b>step</b>', step)\n"
DIFF = """diff --git a/train.py b/train.py
index fccf649..8aeea70 100644
--- a/train.py
+++ b/train.py
@@ -1,3 +1,4 @@ def main():
 import torch
-lr = 1e-3
+lr = 3e-4
+warmup = 200
 for step in range(100):
"""
STEPS = 100


def send_run(post: Any, run: str, git: dict[str, Any], **code: Any) -> Sender:
    """Send a run with 100 steps and its code."""
    sender = Sender(post, "provenance", run, f"run {run}", host__name="gpu-node-17", tensormeter__rank=0)
    start = time.time_ns() - 600 * SECOND
    sender.event("run.start", start, {"config": {"lr": 3e-4}})
    steps = np.arange(STEPS)
    sender.rows(start + steps * SECOND, steps, {"train/loss": 1 / (steps + 1), "eval/accuracy": 1 - 1 / (steps + 1)})
    body = {
        "git": git,
        "source": {"path": "/home/ada/vision/train.py", "text": SOURCE, "truncated": False},
        "packages": {f"package-{index:03}": f"1.{index}" for index in range(150)} | {"torch": "2.9.0"},
        "python": "3.12.4",
        "gpus": ["NVIDIA H200"],
    }
    sender.event("run.code", start, body | code)
    return sender


def artifact(sender: Sender, name: str, step: int, seconds: int, **fields: Any) -> None:
    body = {"name": name, "type": "model", "aliases": [], "folder": False, "size": None, "files": None, "digest": None}
    when = time.time_ns() - (600 - seconds) * SECOND
    sender.event("artifact", when, body | {"problem": ""} | fields, tensormeter__key=name, tensormeter__step=step)


def send_checkpoints(sender: Sender) -> None:
    folder = "/checkpoints/vision/2026-12-01/resnet50-baseline"
    digest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    for step in (20, 40, 60):
        artifact(
            sender,
            f"step-{step}.pt",
            step,
            step,
            path=f"{folder}/step-{step}.pt",
            size=102_400_000,
            files=1,
            digest=digest,
        )
    artifact(sender, "best.pt", 80, 80, path=f"{folder}/best.pt", aliases=["best", "latest"], size=102_400_000, files=1)
    artifact(
        sender, "state", 90, 90,
        path=f"{folder}/state", type="checkpoint", folder=True, size=3_400_000_000, files=17, digest=digest,
    )  # fmt: skip
    artifact(sender, "gone.pt", 95, 95, path=f"{folder}/gone.pt", problem="it does not exist")
    artifact(
        sender,
        "final",
        99,
        99,
        uri="s3://models/vision/final.safetensors",
        problem="the digests of addresses are not computed",
    )


GIT = {
    "commit": COMMIT,
    "branch": "feature/warmup",
    "remote": "https://github.com/example/vision.git",
    "dirty": True,
    "diff": DIFF,
    "truncated": False,
    "untracked": ["notes.md", "data/"],
    "problem": "",
}


def test_the_overview_shows_code_and_artifacts(open_tab: Any, site: Any) -> None:
    sender = send_run(site.post, "code", GIT)
    send_checkpoints(sender)
    tab = open_tab(site.url, permissions=["clipboard-read", "clipboard-write"])
    page = tab.go("#/p/provenance/runs/code/overview")
    code = page.get_by_role("region", name="Code", exact=True)
    expect(code).to_contain_text(COMMIT[:12])
    expect(code).to_contain_text("uncommitted changes in 1 file")
    expect(code.get_by_role("link", name=GIT["remote"])).to_have_attribute("href", GIT["remote"])
    code.get_by_role("button", name="Copy the commit").click()
    expect(code.get_by_role("button", name="Copy the commit")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == COMMIT
    expect(code.locator("details[open]")).to_have_count(0)
    expect(code.locator("pre")).to_have_count(0)  # nothing is built before it is opened
    code.get_by_text("Uncommitted changes", exact=True).click()
    expect(code.locator(".added")).to_have_text("+lr = 3e-4\n+warmup = 200\n")
    code.locator("summary", has_text="Source").click()
    expect(code.get_by_role("region", name="Source")).to_have_text(SOURCE)
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


def test_charts_mark_artifacts(tab: Any, site: Any) -> None:
    send_checkpoints(send_run(site.post, "marks", GIT))
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
    tab.hover(card, 80 / (STEPS - 1))
    expect(tooltip.locator(".mark")).to_have_text("best.pt best, latest · 97.7 MiB")


def test_hostile_code_is_shown_as_text(tab: Any, site: Any) -> None:
    git = GIT | {"branch": HOSTILE, "remote": "javascript:window.hacked=1", "diff": f"+{HOSTILE}\n"}
    sender = send_run(site.post, "hostile", git, packages={HOSTILE: HOSTILE}, gpus=[HOSTILE])
    artifact(sender, HOSTILE, 50, 50, path=f"/tmp/{HOSTILE}; rm -rf ~", aliases=[HOSTILE])
    artifact(sender, "escape", 50, 50, path="/tmp/a\nrm -rf ~")
    artifact(sender, "masked", 50, 50, uri="https://***@example.com/a")
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
