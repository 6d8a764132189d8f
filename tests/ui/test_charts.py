"""Tests of charts: search, drawing, tooltips, zoom, options, groups, ranks, export."""

import json
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, expect
from sample_runs import SECOND, Sender

from tensormeter.otlp.batch import STEP_METRIC, Batch, Event, Gauge
from tensormeter.otlp.encode import encode_events, encode_metrics

LOSS = "train/loss"


def queries(tab: Any) -> list[dict[str, Any]]:
    return [json.loads(request.post_data) for request in tab.asked("/api/v1/query")]


def test_sections_by_name_prefix_can_be_folded(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00")
    tab.card("eval/loss")
    assert page.locator(".section h2 button").all_text_contents() == ["eval2", "train5", "throughput1"]
    page.get_by_role("button", name="eval 2").click()
    expect(page.locator('.card[aria-label="eval/loss"]')).to_have_count(0)
    assert "closed=eval" in page.url


def test_charts_are_searched_by_regular_expression(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00")
    tab.card("eval/loss")
    page.get_by_label("Search charts").fill("^(train|eval)/l.ss$")
    expect(page.locator(".card")).to_have_count(2)
    page.get_by_label("Search charts").fill("(")
    expect(page.get_by_text("No matching charts")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    expect(page.locator(".card")).to_have_count(8)


def test_charts_are_drawn_only_while_visible(tab: Any) -> None:
    page = tab.go("#/p/wide/runs/wide000")
    tab.card("block00/weight00/norm")
    assert page.locator(".card").count() == 300
    assert page.locator(".card canvas").count() < 60
    asked = {metric for query in queries(tab) for metric in query["metrics"]}
    assert "block14/weight19/norm" not in asked
    page.locator('.card[aria-label="block14/weight19/norm"]').scroll_into_view_if_needed()
    tab.card("block14/weight19/norm")
    page.wait_for_function("() => document.querySelectorAll('.card canvas').length < 60")


def test_first_points_are_requested_while_code_loads(tab: Any) -> None:
    page, delayed = tab.page, []
    page.route(
        "**/static/shell-*.js", lambda route: route.continue_() if tab.asked("/api/v1/query") else delayed.append(route)
    )
    with page.expect_response("**/api/v1/query"):
        page.goto(f"{tab.url}/#/p/vision/runs/vis00,vis01", wait_until="commit")
    assert delayed
    for route in delayed:
        route.continue_()
    tab.card("eval/loss")
    tab.settle()
    asked = [metric for query in queries(tab) if "after" not in query for metric in query["metrics"]]
    assert len(asked) == len(set(asked)) > 0


def test_points_are_transferred_in_binary(tab: Any) -> None:
    tab.go("#/p/vision/runs/vis00")
    tab.card(LOSS)
    response = tab.asked("/api/v1/query")[0].response()
    assert response.headers["content-type"].startswith("application/vnd.tensormeter.columns")


def test_hover_shows_all_values_highest_first(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00,vis01,vis02,vis04")
    tooltip = tab.hover(tab.card(LOSS))
    expect(tooltip.locator(".reading")).to_have_count(4)
    values = [float(text) for text in tooltip.locator(".reading .value").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    listed = [float(text) for text in page.locator(".runlist .value").all_inner_texts()]
    assert sorted(listed, reverse=True) == values


def test_keys_read_values_and_zoom(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?q=train/loss$")
    plot = tab.card(LOSS).get_by_role("slider", name="Values of train/loss")
    tab.settle()
    plot.focus()
    page.keyboard.press("End")
    expect(page.locator(".tooltip")).to_contain_text("step 2999")
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator(".tooltip")).to_contain_text(re.compile(r"step 2[67]\d\d"))
    expect(plot).to_have_attribute("aria-valuetext", re.compile(r"^resnet18-calm-00 0\.\d+$"))
    page.keyboard.press("+")
    page.wait_for_function("() => location.hash.includes('from=19')")
    page.keyboard.press("0")
    page.wait_for_function("() => !location.hash.includes('from=')")
    page.keyboard.press("Tab")
    expect(page.locator(".tooltip")).to_be_hidden()


def test_an_empty_range_offers_to_zoom_out(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?q=train/loss$&from=90000&to=90001")
    card = tab.card(LOSS)
    card.get_by_role("button", name="Zoom out").click()
    page.wait_for_function("() => !location.hash.includes('from=')")
    expect(card.get_by_text("No points in this range.")).to_be_hidden()
    expect(card.locator(".plot")).to_be_visible()


def test_spikes_survive_sampling(tab: Any) -> None:
    tab.go("#/p/vision/runs/vis00")
    card = tab.card(LOSS)
    # The spike is one of 3000 points, of which the server sends 1000.
    rows = Path(tab.save(card, "CSV").path()).read_text().splitlines()
    assert max(float(row.split(",")[2]) for row in rows[1:] if row.split(",")[2] != "NaN") == 4.9


def test_zoom_reloads_all_charts_at_full_detail(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?q=train/(loss%7Caccuracy)$")
    card = tab.card(LOSS)
    tab.card("train/accuracy")
    before = len(queries(tab))
    drawn = card.get_attribute("data-drawn")
    with page.expect_response("**/api/v1/query"):
        tab.drag(card, 0.4, 0.6)
    expect(card).not_to_have_attribute("data-drawn", drawn)
    asked = queries(tab)[before:]
    assert {metric for query in asked for metric in query["metrics"]} == {LOSS, "train/accuracy"}
    assert all(1150 < query["start"] < 1250 and 1750 < query["stop"] < 1850 for query in asked)
    body = tab.asked("/api/v1/query")[-1].response().body()
    header = json.loads(body[4 : 4 + struct.unpack("<I", body[:4])[0]])
    assert all(series["x"]["length"] == series["total"] for series in header["series"])
    assert "from=" in page.url
    expect(page.get_by_role("button", name="Zoom out")).to_be_visible()
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="Zoom out")).to_be_hidden()


def test_smoothing_keeps_the_raw_curve(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?s=0.99")
    card = tab.card(LOSS)
    expect(tab.hover(card)).to_contain_text("raw ")
    asked = len(queries(tab))
    page.get_by_label("Smoothing").fill("0.5")
    page.wait_for_function("() => location.hash.includes('s=0.5')")
    assert len(queries(tab)) == asked  # from memory


def test_smoothing_is_debiased(tab: Any) -> None:
    tab.go("#/p/vision/runs/vis00?s=0.99&q=train/loss$")
    rows = [row.split(",") for row in Path(tab.save(tab.card(LOSS), "CSV").path()).read_text().splitlines()]
    assert rows[0] == ["step", "series", "value", "smoothed"]
    assert float(rows[1][3]) == float(rows[1][2])


def test_x_axis_and_scales_can_be_changed(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?q=train/loss$")
    card = tab.card(LOSS)
    for axis, words in (("relative", "relative "), ("time", "20"), ("metric:train/epoch", "train/epoch ")):
        drawn = card.get_attribute("data-drawn")
        page.get_by_label("x axis").select_option(axis)
        expect(card).not_to_have_attribute("data-drawn", drawn)
        expect(tab.hover(card)).to_contain_text(words)
    page.get_by_label("log y").check()
    page.get_by_label("log x").check()
    page.wait_for_function("() => location.hash.includes('ylog=1') && location.hash.includes('xlog=1')")
    expect(tab.hover(card)).to_be_visible()


def test_values_that_are_not_finite_are_marked(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis03?q=gradient")
    card = tab.card("train/gradient_norm")
    expect(card.locator(".remark")).to_contain_text(re.compile(r"not finite \(✕ NaN, ▲ ∞\)"))
    expect(card.locator(".last")).to_have_text("NaN")
    assert Path(tab.save(card, "SVG").path()).read_text().count('class="marks"') == 1
    assert red_pixels(page, card) > 20


def red_pixels(page: Page, card: Any) -> int:
    return int(
        card.locator("canvas").evaluate(
            """(canvas) => {
                const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                let pixels = 0;
                for (let i = 0; i < data.length; i += 4) if (data[i] > 150 && data[i + 1] < 60 && data[i + 2] < 60) pixels++;
                return pixels;
            }"""
        )
    )


def test_outliers_can_be_excluded(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?q=train/loss$")
    card = tab.card(LOSS)
    page.get_by_label("ignore outliers").check()
    expect(card.locator(".remark")).to_contain_text("outliers not shown")


def test_groups_are_drawn_as_mean_and_range(tab: Any) -> None:
    ids = ",".join(f"vis{index:02}" for index in range(6))
    page = tab.go(f"#/p/vision/runs/{ids}?q=train/loss$")
    tab.card(LOSS)
    page.get_by_label("Group by").select_option("config.optimizer")
    card = tab.card(LOSS)
    page.wait_for_function("() => location.hash.includes('group=')")
    readings = tab.hover(card).locator(".reading")
    expect(readings).to_have_count(2)
    expect(readings.first).to_contain_text(re.compile(r"optimizer = (adamw|sgd).* to .*mean of 3"))
    expect(card.locator(".legend button")).to_have_text(["optimizer = adamw", "optimizer = sgd"])
    header, first, *_ = Path(tab.save(card, "CSV").path()).read_text().splitlines()
    assert header == "step,series,value,smoothed,low,high"
    low, high = map(float, first.split(",")[4:])
    assert low < float(first.split(",")[2]) < high


def test_remark_names_the_slowest_rank(tab: Any) -> None:
    page = tab.go("#/p/language/runs/llm1")
    card = tab.card("time_metrics/end_to_end(s)")
    expect(card.locator(".remark")).to_contain_text("rank 5 (node-1) is the highest 100 % of the time")
    expect(tab.hover(card)).to_contain_text(re.compile(r"median of 8 ranks.* to .*highest rank 5 \(node-1\)"))
    expect(tab.card("loss_metrics/global_avg_loss").locator(".remark")).not_to_contain_text("rank 5")
    page.get_by_label("Ranks").select_option("each")
    expect(card.locator(".legend button")).to_have_count(8)
    page.get_by_label("Ranks").select_option("first")
    expect(card.locator(".legend button")).to_have_count(0)


def test_ranks_of_grouped_runs_are_combined(tab: Any) -> None:
    tab.go("#/p/language/runs/llm1,llm2?group=config.slow&q=end_to_end")
    readings = tab.hover(tab.card("time_metrics/end_to_end(s)")).locator(".reading")
    expect(readings).to_have_count(2)
    expect(readings.first).to_contain_text(re.compile(r"slow = .*mean of the medians of 1 run, 8 ranks"))


def test_ranks_of_many_runs_are_aggregated_in_the_browser(open_tab: Callable[..., Any], site: Any) -> None:
    steps = np.arange(101, dtype=np.int64)
    times = time.time_ns() - 3600 * SECOND + steps * SECOND
    for run in range(14):
        for rank in range(3):
            sender = Sender(
                site.post, "fleet", f"fleet{run:02}", f"fleet {run:02}", f"rank{rank}", tensormeter__rank=rank
            )
            sender.event("run.start", int(times[0]), {"config": {"half": run % 2}} if rank == 0 else None)
            # The last rank is higher than the others and has a spike.
            sender.rows(
                times + rank,
                steps,
                {"wait": np.where(steps == 50, 90, 8 + run) if rank == 2 else 2.0 + run + 0 * steps},
            )
            # Other tests expect no other running runs.
            sender.event("run.end", int(times[-1]), {"state": "finished"})
    tab = open_tab(site.url)
    page = tab.go("#/p/fleet/runs/" + ",".join(f"fleet{run:02}" for run in range(14)))
    card = tab.card("wait")
    expect(card.locator(".remark")).to_have_text("mean and range of each run's ranks")
    expect(card.locator(".remark")).not_to_have_class(re.compile("warn"))
    # Metrics of several runs are read with one request.
    assert not tab.asked("/runs/fleet01/metrics")
    last = tab.hover(card, 0.9).locator(".reading").last
    expect(last).to_contain_text(re.compile(r"fleet 00\s*4\s*2 to 8 · mean of 3 ranks"))
    spike = tab.hover(card).locator(".reading").filter(has_text="fleet 00")
    expect(spike).to_contain_text("2 to 90")
    page.get_by_label("Group by").select_option("config.half")
    grouped = tab.hover(card, 0.9).locator(".reading").filter(has_text="half = 0")
    expect(grouped).to_contain_text(re.compile(r"10\s*2 to 20 · mean of the means of 7 runs, 21 ranks"))


def test_server_aggregates_ranks_beyond_its_line_limit(open_tab: Callable[..., Any], site: Any) -> None:
    runs, ranks = 13, 155
    times = (time.time_ns() - 3600 * SECOND + np.arange(3) * SECOND).astype(np.uint64)
    for run in range(runs):
        batches = []
        for rank in range(ranks):
            resource = {"service.name": "crowd", "tensormeter.run.id": f"crowd{run}", "tensormeter.rank": rank}
            gauges = [Gauge(STEP_METRIC, times, np.arange(3)), Gauge("wait", times, np.full(3, float(rank + run)))]
            batches.append(Batch(resource | {"service.instance.id": f"{run}-{rank}"}, gauges))
        site.post("/v1/metrics", encode_metrics(batches))
        # Other tests expect no other running runs.
        ended = Event("tensormeter.run.end", int(times[-1]), {"state": "finished"})
        site.post("/v1/logs", encode_events(batches[0].resource, [ended]))
    tab = open_tab(site.url)
    tab.go("#/p/crowd/runs/" + ",".join(f"crowd{run}" for run in range(runs)))
    readings = tab.hover(tab.card("wait")).locator(".reading")
    expect(readings).to_have_count(runs)
    expect(readings.last).to_contain_text(re.compile(r"crowd0\s*77\s*0 to 154 · highest .*, lowest "))


def test_legend_hides_lines(tab: Any) -> None:
    tab.go("#/p/language/runs/llm1?ranks=each")
    card = tab.card("throughput(tps)")
    card.get_by_role("button", name="rank 5 (node-1)").click()
    expect(card.get_by_role("button", name="rank 5 (node-1)")).to_have_attribute("aria-pressed", "false")
    expect(tab.hover(card).locator(".reading")).to_have_count(7)


def test_run_list_hides_runs(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00,vis01,vis02?q=train/loss$")
    card = tab.card(LOSS)
    page.get_by_label("Show resnet34-brisk-01").uncheck()
    page.wait_for_function("() => location.hash.includes('hide=vis01')")
    expect(tab.hover(card).locator(".reading")).to_have_count(2)


def test_full_screen_opens_and_closes(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00")
    tab.card(LOSS).get_by_role("button", name=f"Show {LOSS} full screen").click()
    dialog = page.locator("dialog.full")
    expect(dialog.locator("canvas")).to_be_visible()
    assert dialog.locator("canvas").bounding_box()["width"] > 1000
    assert "full=train%2Floss" in page.url
    tab.hover(dialog.locator(".card"))
    expect(dialog.locator(".tooltip")).to_be_visible()
    dialog.get_by_role("slider").focus()
    page.keyboard.press("End")
    page.keyboard.press("+")
    page.wait_for_function("() => location.hash.includes('from=')")
    page.keyboard.press("0")
    page.wait_for_function("() => !location.hash.includes('from=')")
    dialog.locator("summary").click()
    page.keyboard.press("Escape")
    expect(dialog.get_by_role("menu")).to_be_hidden()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.wait_for_function("() => !location.hash.includes('full=')")


def test_charts_are_saved_as_png_and_svg(tab: Any) -> None:
    tab.go("#/p/vision/runs/vis00,vis01?q=train/loss$&s=0.9")
    card = tab.card(LOSS)
    download = tab.save(card, "PNG")
    assert download.suggested_filename == "train_loss.png"
    assert Path(download.path()).read_bytes().startswith(b"\x89PNG")
    drawing = Path(tab.save(card, "SVG").path()).read_text()
    assert drawing.startswith("<svg")
    assert drawing.count("<path") == 4
    assert "resnet34-brisk-01" in drawing
    card.locator("summary").click()
    card.get_by_role("heading").click()
    expect(card.get_by_role("menu")).to_be_hidden()


def test_tooltip_of_many_runs_shows_the_highest_and_the_nearest(tab: Any) -> None:
    ids = ",".join(f"wide{run:03}" for run in range(100))
    page = tab.go(f"#/p/wide/runs/{ids}")
    card = tab.card("block00/weight00/norm")
    tooltip = tab.hover(card)
    # The tooltip shows the highest values and the nearest one.
    expect(tooltip).to_contain_text(re.compile("and 7[56] more"))
    expect(tooltip.locator(".nearest")).to_have_count(1)
    expect(page.locator(".runlist .nearest")).to_contain_text(tooltip.locator(".nearest .name").inner_text())
    assert len([text for text in page.locator(".runlist .value").all_inner_texts() if text]) == 100
