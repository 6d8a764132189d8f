"""Tests of the page with the demo, during and after its training."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the run's page, as printed by the demo."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("demo")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TENSORMETER_", "OTEL_"))}
    environment = inherited | {
        "TENSORMETER_BUFFER_DIR": str(folder / "rings"),
        "TENSORMETER_SCHEDULE_DELAY": "0.2",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        str(ROOT / "examples" / "demo.py"),
        "--folder",
        str(folder),
        "--port",
        "0",
        "--",
        "--epochs",
        "30",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line.strip() for line in lines if "/#/p/" in line)
        yield address
        rest = process.stdout
        assert any(f"Web page of the run: {address}" in line for line in iter(rest.readline, ""))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    assert process.returncode == 0


@pytest.fixture
def tab(open_tab: Callable[..., Any], demo: str) -> Any:
    return open_tab(demo.partition("/#")[0])


def place(demo: str, pane: str = "") -> str:
    return "#" + demo.partition("#")[2] + pane


def test_run_is_shown_during_and_after_training(tab: Any, demo: str) -> None:
    page = tab.go("#/p/digits")
    expect(page.get_by_text("1 run", exact=True)).to_be_visible()
    page.locator(".rows .row a").first.click()
    page.wait_for_url(f"**/{place(demo)}")
    for name in ("train/loss", "train/accuracy", "eval/loss", "eval/averaged_accuracy"):
        tab.card(name)
    expect(page.locator(".health .badge")).to_have_text("finished")
    # The demo logs a NaN and an infinity on purpose, for which the server raises alerts.
    expect(page.get_by_role("alert").filter(has_text=re.compile("Not finite .* and 1 more"))).to_be_visible()
    expect(tab.card("train/gradient_cosine").locator(".remark")).to_contain_text("1 not finite")
    expect(tab.card("eval/best_loss").locator(".remark")).to_contain_text("1 not finite")
    expect(tab.hover(tab.card("train/loss"))).to_contain_text(re.compile(r"step \d+"))


def test_demo_run_has_phases_gradients_and_mistakes(tab: Any, demo: str) -> None:
    page = tab.go(place(demo, "/system"))
    names = tab.card("phases, stacked").locator(".legend button")
    expect(names).to_have_text(["model_forward", "model_backward", "optimizer_update"])
    page.get_by_role("link", name="Distributions").click()
    expect(tab.card("gradients/0.weight").locator(".remark")).to_contain_text("144 values")
    page.get_by_role("link", name="Media").click()
    card = page.locator('.card[aria-label="eval/mistakes"]')
    expect(card.locator("tbody img[src]").first).to_be_visible()
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("region", name="Run", exact=True)).to_contain_text("digits.py")
    alerts = page.get_by_role("region", name="Alerts")
    expect(alerts).to_contain_text("ERROR Not finite train/gradient_cosine: the value is nan")
    expect(alerts).to_contain_text("ERROR Not finite eval/best_loss: the value is inf")
    expect(page.get_by_role("region", name="Configuration")).to_contain_text("learning_rate")
