"""Tests of the other panes: distributions, system, media, overview, configuration."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from playwright.sync_api import expect
from sample_runs import FIGURES, HOSTILE_HTML, SECOND, Sender


def painted(canvas: Any) -> int:
    """Count the different colours of a canvas."""
    return int(
        canvas.evaluate(
            """(canvas) => {
                const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                return new Set(new Uint32Array(data.buffer)).size;
            }"""
        )
    )


def test_distributions_show_a_heat_map_and_one_step(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/distributions")
    card = tab.card("gradients · conv1")
    assert page.locator(".card").count() == 4
    assert painted(card.locator("canvas.heat")) > 20
    expect(card.locator(".remark")).to_contain_text(re.compile(r"step 2950 · 400 values · mean .* from −.* to "))  # noqa: RUF001
    before = card.locator("canvas.single").evaluate("(canvas) => canvas.toDataURL()")
    card.get_by_role("slider").fill("0")
    expect(card.locator(".remark")).to_contain_text("step 0 · 400 values")
    assert card.locator("canvas.single").evaluate("(canvas) => canvas.toDataURL()") != before
    card.locator("canvas.heat").click(position={"x": 300, "y": 60})
    expect(card.locator(".remark")).not_to_contain_text("step 0 ·")
    page.get_by_label("Search distributions").fill("nothing")
    expect(page.get_by_text("No matching distributions")).to_be_visible()


def test_empty_distributions_pane_explains_how_to_log_them(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis02/distributions")
    expect(page.get_by_text("No distributions yet")).to_be_visible()
    expect(page.get_by_text("run.watch(model)")).to_be_visible()


def test_system_pane_groups_gpus_by_node_and_metrics_by_kind(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/system")
    expect(page.locator(".fleet h2")).to_contain_text("8 on 1 node, 1 idle")
    expect(page.locator(".fleet .gpu")).to_have_count(8)
    expect(page.locator(".fleet .gpu.idle")).to_have_attribute(
        "title", re.compile(r"H100.* GPU-0006: 2 % busy, 77 % of memory")
    )
    expect(page.locator(".section h2 button")).to_have_count(5)
    headings = page.locator(".section h2 button").all_text_contents()
    assert [re.sub(r"\d+$", "", text) for text in headings] == ["Phases of a step", "GPU", "Process", "Host", "Logging"]


def test_phases_are_stacked_in_the_order_of_a_step(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/system")
    card = tab.card("phases, stacked")
    assert card.locator(".legend button").all_text_contents() == ["data_loading", "forward", "backward", "optimizer"]
    tab.settle()
    tab.hover(card, 0.3)
    names = page.locator(".tooltip .reading .name").all_text_contents()
    assert names == ["optimizer", "backward", "forward", "data_loading"]
    expect(page.locator(".tooltip")).to_contain_text("ms in this phase")


def test_phases_are_filtered_by_clock_and_process(tab: Any) -> None:
    page = tab.go("#/p/language/runs/llm1/system")
    card = tab.card("phases, stacked")
    expect(card.locator(".remark")).to_have_text("mean of 8 processes, host time")
    expect(card.locator(".legend button")).to_have_text(["data_loading", "forward", "backward", "optimizer"])
    page.get_by_label("Clock of phases").select_option("device")
    expect(card.locator(".remark")).to_have_text("mean of 8 processes, device time")
    expect(card.locator(".legend button")).to_have_text(["forward", "backward", "optimizer"])
    page.get_by_label("Process").select_option(label="rank 5 (node-1)")
    expect(card.locator(".remark")).to_have_text("rank 5 (node-1), device time")
    expect(tab.card("lag of the device").locator(".legend button")).to_have_text(["forward", "backward", "optimizer"])
    assert "clock=device" in page.url
    assert "process=llm1-rank5" in page.url


def test_system_metrics_have_units(tab: Any) -> None:
    tab.go("#/p/vision/runs/vis00/system")
    expect(tab.card("tensormeter.log.duration").locator(".last")).to_have_text(re.compile(r"\d ns"))
    expect(tab.card("process.memory.usage").locator(".last")).to_have_text(re.compile(r"\d GiB"))


def test_system_charts_open_in_full_screen(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/system?full=hw.gpu.utilization")
    dialog = page.get_by_role("dialog", name="hw.gpu.utilization")
    expect(dialog.locator(".legend button")).to_have_count(8)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.wait_for_function("() => !location.hash.includes('full=')")


def test_images_are_selected_by_step(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    card = page.locator('.card[aria-label="filters"]')
    expect(card.locator(".remark")).to_contain_text("filters after 2000 steps · 64 × 64")  # noqa: RUF001
    image = card.locator("img")
    image.evaluate("(image) => image.decode()")
    assert image.evaluate("(image) => image.naturalWidth") == 64
    card.get_by_role("slider").fill("0")
    expect(card.locator(".remark")).to_contain_text("step 500")


def test_tables_sort_and_filter_and_show_images(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    card = page.locator('.card[aria-label="confusions"]')
    expect(card.locator("tbody img")).to_have_count(4)
    # An image gets its address after it was loaded, which can be later than its row.
    card.locator("tbody img[src]").first.evaluate("(image) => image.decode()")
    card.locator("tbody .picture").first.click()
    large = page.get_by_role("dialog", name="Image")
    expect(large).to_contain_text("24 × 24")  # noqa: RUF001
    assert large.locator("img").bounding_box()["height"] > 300
    large.get_by_role("button", name="Close").click()
    expect(large).to_have_count(0)
    column = card.locator("tbody td:nth-child(3)")
    card.get_by_role("button", name="confidence").click()
    assert column.all_text_contents() == ["0.869", "0.906", "0.943", "0.98"]
    card.get_by_role("button", name="confidence").click()
    assert column.all_text_contents() == ["0.98", "0.943", "0.906", "0.869"]
    card.get_by_label("Filter rows").fill("owl")
    expect(card.locator("tbody tr")).to_have_count(1)
    expect(card).to_contain_text("1 of 4 rows")


def test_texts_are_shown(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    expect(page.locator('.card[aria-label="captions"]')).to_contain_text("A photo of an owl.")


def test_a_list_of_images_is_a_grid_that_opens_to_its_images(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    card = page.locator('.card[aria-label="generated"]')
    expect(card.locator("img[src]")).to_have_count(24)
    expect(card.locator(".remark")).to_contain_text("step 2000")
    card.locator("img").nth(22).evaluate("(image) => image.decode()")
    card.locator(".picture").nth(22).click()
    large = page.locator("dialog.lightbox")
    expect(large).to_contain_text("23 of 24 · sample 22 · 32 × 32")  # noqa: RUF001
    large.get_by_role("button", name="Next").click()
    page.keyboard.press("ArrowRight")
    expect(large).to_contain_text("1 of 24 · sample 0")
    large.get_by_role("button", name="Close").click()
    expect(large).to_have_count(0)


def test_videos_and_audio_are_played(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    for kind, words in (("video", "episode 7 · 96 × 64 · 12 frames"), ("audio", "a tone · 8000 Hz")):  # noqa: RUF001
        card = page.locator(f'.card[aria-label="{kind} of the episode"]')
        expect(card.locator(".remark")).to_contain_text(words)
        player = card.locator(kind)
        player.evaluate("(player) => { player.muted = true; return player.play(); }")
        page.wait_for_function("(player) => player.currentTime > 0", arg=player.element_handle())


def test_media_are_not_listed_again_as_events(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/overview")
    names = page.locator('.panel[aria-label="Events"] li strong')
    expect(names.filter(has_text="run.start")).to_have_count(1)
    for kind in ("images", "video", "audio", "figure", "html", "table", "text"):
        expect(names.get_by_text(kind, exact=True)).to_have_count(0)


def test_plotly_figures_are_drawn_and_saved(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    lines, bars, cells, counts = (page.locator(f'.card[aria-label="figure{number}"]') for number in range(4))
    expect(lines.locator("path.line")).to_have_count(2)
    expect(lines.locator("path.dots")).to_have_count(1)
    expect(lines.locator(".keys")).to_have_text("trainvalidation")
    expect(lines).to_contain_text("Loss by epoch")
    expect(bars.locator("svg[role=img] rect")).to_have_count(8)
    expect(bars).to_contain_text("Not drawn here: pie")
    expect(cells.locator("svg[role=img] rect")).to_have_count(16)
    heights = counts.locator("svg[role=img] rect").evaluate_all(
        "(bars) => bars.map((bar) => +bar.getAttribute('height'))"
    )
    assert len(heights) > 20
    with page.expect_download() as download:
        lines.get_by_role("button", name="Save as JSON").click()
    assert json.loads(download.value.path().read_text()) == FIGURES[0]


def test_bars_are_stacked_turned_and_reversed_as_the_figure_says(tab: Any, site: Any) -> None:
    figures = {
        "stacked": go.Figure([go.Bar(x=["a"], y=[1]), go.Bar(x=["a"], y=[3])], {"barmode": "stack"}),
        "turned": go.Figure(go.Bar(x=[1, -2], y=["a", "b"], orientation="h")),
        "reversed": go.Figure(go.Heatmap(z=[[0], [1]]), {"yaxis": {"autorange": "reversed"}}),
    }
    sender = Sender(site.post, "figures", "figures", "figures", tensormeter__rank=0)
    now = time.time_ns()
    sender.event("run.start", now - 9, {"config": {}})
    for key, figure in figures.items():
        sender.event("figure", now, {"figure": figure.to_json(), "caption": ""}, tensormeter__key=key)
    page = tab.go("#/p/figures/runs/figures/media")

    def bars(key: str) -> list[dict[str, float]]:
        card = page.locator(f'.card[aria-label="{key}"] svg[role=img] rect')
        expect(card).to_have_count(2)
        names = ["x", "y", "width", "height", "fill-opacity"]
        read = "(bars, names) => bars.map((bar) => Object.fromEntries(names.map((name) => [name, +bar.getAttribute(name)])))"
        return card.evaluate_all(read, names)

    low, high = bars("stacked")
    assert high["height"] == pytest.approx(3 * low["height"], rel=0.01)
    assert high["y"] + high["height"] == pytest.approx(low["y"], abs=0.1)
    right, left = bars("turned")
    assert left["width"] == pytest.approx(2 * right["width"], rel=0.01)
    assert left["x"] + left["width"] == pytest.approx(right["x"], abs=0.1)
    assert left["y"] < right["y"]  # the first category is at the bottom
    first, second = bars("reversed")
    assert first["y"] < second["y"]
    assert first["fill-opacity"] < second["fill-opacity"]


def test_repeated_texts_are_shown_once_with_their_steps(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00/media")
    card = page.locator('.card[aria-label="phase"]')
    expect(card).to_contain_text("warmup")
    expect(card.locator(".remark")).to_contain_text("steps 0 to 400 · logged 401 times")
    expect(card.get_by_role("slider")).to_be_hidden()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """The address of another server, and the requests that it gets."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_logged_html_runs_no_scripts_and_reaches_no_network(
    tab: Any, site: Any, elsewhere: tuple[str, list[str]]
) -> None:
    address, paths = elsewhere
    sender = Sender(site.post, "html", "html", "html", tensormeter__rank=0)
    now = time.time_ns()
    sender.event("run.start", now - 9, {"config": {}})
    html = {"html": HOSTILE_HTML.replace("ADDRESS", address), "caption": "c"}
    sender.event("html", now, html, tensormeter__key="report", tensormeter__step=1)
    page = tab.go("#/p/html/runs/html/media")
    document = page.frame_locator("iframe.html").frame_locator("iframe")
    expect(document.locator("body")).to_contain_text("no script ran")
    document.get_by_role("button", name="send").click()
    expect(document.locator("body")).to_contain_text("no script ran")
    with page.expect_console_message(lambda message: "frame-src" in message.text or "default-src" in message.text):
        document.get_by_role("link").click()
    assert page.evaluate("() => window.hacked") is None
    assert paths == []
    assert all("Content Security Policy" in error or "sandboxed" in error for error in tab.errors), tab.errors
    tab.errors.clear()
    tab.requests[:] = [request for request in tab.requests if not request.url.startswith(address)]  # all were blocked


def test_overview_shows_how_the_run_ended(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis03/overview")
    run = page.get_by_role("region", name="Run", exact=True)
    expect(run).to_contain_text("failed, exit code 1, ValueError: loss is not finite")
    expect(run).to_contain_text("4f1c2d9a7be0")
    expect(run).to_contain_text("python train.py --config")
    expect(page.get_by_role("region", name="Alerts")).to_contain_text("ERROR NaN train/loss is NaN since step 2940")
    expect(page.get_by_role("region", name="Configuration")).to_contain_text(
        re.compile(r"learning_rate\s*0\.000991\d{9,}")
    )
    expect(page.get_by_role("region", name="Environment")).to_contain_text("gpu-node-1")


def test_overview_of_a_running_run_is_updated(tab: Any, site: Any) -> None:
    """The node sends data first; then a rank sends its command line and loses points."""
    steps = np.arange(3, dtype=np.int64)
    times = time.time_ns() + steps
    node = Sender(site.post, "growing", "grow", "grow", "node", tensormeter__process__kind="node", host__name="gpu-7")
    node.rows(times, steps, {"hw.power": steps})
    page = tab.go("#/p/growing/runs/grow/overview")
    run = page.get_by_role("region", name="Run", exact=True)
    expect(run).to_contain_text("gpu-7")
    expect(run).to_contain_text("points6lostnothing")
    expect(run).not_to_contain_text("train.py")
    command = ["python", "train.py"]
    rank = Sender(site.post, "growing", "grow", "grow", tensormeter__rank=0, process__command_args=command)
    rank.rows(times, steps, {"loss": steps})
    expect(run).to_contain_text("points12lostnothing")
    expect(run).to_contain_text("argumentspython train.py")
    expect(run).not_to_contain_text("gpu-7")
    expect(page.get_by_role("region", name="Processes").locator("tbody tr")).to_have_count(2)
    rank.event("process.end", int(times[-1]), {"dropped": {"ring_full": 5}})
    expect(run).to_contain_text("points12lost5 points: the ring buffer was full")


def test_losses_and_failures_are_banners_on_every_pane(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis05/media")
    banners = page.get_by_role("alert")
    expect(banners.filter(has_text="The process ended without finishing the run (crash or kill).")).to_be_visible()
    expect(banners.filter(has_text="1.28k points: the ring buffer was full")).to_be_visible()
    page.get_by_role("link", name="Charts").click()
    expect(banners.filter(has_text="1.28k points: the ring buffer was full")).to_be_visible()
    tab.go("#/p/vision/runs/vis03")
    page.get_by_role("alert").filter(has_text="is NaN since step 2940").get_by_role(
        "link", name="Show train/loss"
    ).click()
    expect(page.locator("dialog.full[aria-label='train/loss'] canvas")).to_be_visible()


def test_banners_name_runs_with_lost_or_late_data(tab: Any, site: Any) -> None:
    for run, late in (("late1", 3600), ("late2", 0)):
        sender = Sender(site.post, "late", run, f"run {run}")
        now = time.time_ns()
        sender.event("run.start", now - 7200 * SECOND, {"config": {}})
        steps = np.arange(3, dtype=np.int64)
        sender.rows(now - late * SECOND + steps, steps, {"loss": steps})
    page = tab.go("#/p/vision/runs/vis00,vis05/difference")
    lost = page.get_by_role("alert").filter(has_text="Data was lost in 1 run:")
    lost.get_by_role("link", name="resnet50-brisk-05 (1.28k)").click()
    expect(page.get_by_role("alert").filter(has_text="1.28k points: the ring buffer was full")).to_be_visible()
    tab.go("#/p/vision")
    expect(lost.get_by_role("link", name="resnet50-brisk-05 (1.28k)")).to_be_visible()
    for address in ("#/p/late", "#/p/late/runs/late1,late2"):
        tab.go(address)
        expect(page.get_by_role("alert")).to_have_text(re.compile(r"Late data in 1 run: run late1 \(1h"))


def test_runs_can_be_archived_and_restored(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis07/overview")
    page.get_by_role("button", name="Archive").click()
    expect(page.get_by_role("button", name="Restore from archive")).to_be_visible()
    tab.go("#/p/vision")
    expect(page.get_by_text("11 runs", exact=True)).to_be_visible()
    tab.go("#/p/vision/runs/vis07/overview")
    page.get_by_role("button", name="Restore from archive").click()
    expect(page.get_by_role("button", name="Archive")).to_be_visible()


def test_delete_asks_for_confirmation(tab: Any) -> None:
    page = tab.go("#/p/language/runs/llm2/overview")
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="llama-7b-llm2", exact=True)).to_be_visible()
    assert not [request for request in tab.requests if request.method == "DELETE"]


def test_configuration_pane_shows_differing_settings(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00,vis01,vis06/difference")
    table = page.locator("table.difference")
    expect(table.locator("tbody th").filter(has_text="optimizer")).to_be_visible()
    expect(table.locator("tbody th").filter(has_text="model.width")).to_have_count(0)
    page.get_by_label("show equal settings").check()
    expect(table.locator("tbody th").filter(has_text="model.width")).to_be_visible()
    row = table.locator("tr", has=page.locator("th", has_text="optimizer"))
    assert row.locator("td").all_text_contents() == ['"adamw"', '"sgd"', '"adamw"']


def test_every_reason_for_a_loss_is_a_sentence(tab: Any, site: Any) -> None:
    sender = Sender(site.post, "lossy", "lossy", "lossy", tensormeter__rank=0)
    now = time.time_ns()
    sender.event("run.start", now - 9, {"config": {"lr": 0.1}})
    lost = {
        "ring_full": 70,
        "image_too_large": 3,
        "text_too_large": 1,
        "config_too_large": 2,
        "refused": 1,
        "new_reason": 5,
    }
    sender.event("run.end", now, {"state": "finished", "dropped": lost})
    page = tab.go("#/p/lossy/runs/lossy/overview")
    banner = page.get_by_role("alert").filter(has_text="Data was lost.")
    sentences = [
        "70 points: the ring buffer was full; raise buffer_bytes or log less often.",
        "5 items: new reason.",
        "3 images: larger than 16 MiB.",
        "2 configuration values: the configuration exceeded 1 MiB, so its largest values were dropped.",
        "1 item: refused by the server; warnings of the training process give the reason.",
        "1 text: larger than 4 MiB.",
    ]
    expect(banner).to_have_text("Data was lost. " + " ".join(sentences))
    expect(page.get_by_role("region", name="Run", exact=True)).to_contain_text(sentences[0])


def test_large_tables_and_texts_are_read_when_shown(tab: Any, site: Any) -> None:
    sender = Sender(site.post, "large", "large", "large", tensormeter__rank=0)
    now = time.time_ns()
    sender.event("run.start", now - 9, {"config": {}})
    for step in (1, 2):
        about = {"tensormeter__step": step}
        text = {"text": f"text {step} " + "x" * 2_000_000, "content_type": "text/plain"}
        sender.event("text", now + step, text, tensormeter__key="answers", **about)
        rows = [[number, f"answer {number} of {step}"] for number in range(50_000)]
        sender.event("table", now + step, {"columns": ["n", "answer"], "rows": rows}, tensormeter__key="rows", **about)
    page = tab.go("#/p/large/runs/large/media")
    tables, texts = page.get_by_role("region", name="rows"), page.get_by_role("region", name="answers")
    expect(tables).to_contain_text("answer 0 of 2")
    expect(texts).to_contain_text("text 2 xxx")
    tables.get_by_label("Step").fill("0")
    expect(tables).to_contain_text("answer 0 of 1")
