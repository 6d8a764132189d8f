"""Take screenshots of all views with sample runs, light and dark: `make screenshots`."""

import argparse
import sys
import tempfile
from pathlib import Path

from live_server import CHROMIUM, FLAGS, sample_server
from playwright.sync_api import Browser, Page, sync_playwright
from sample_charts import send_charts
from sample_logs import send_logs
from sample_runs import send_gallery, send_wide

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MANY = ",".join(f"vis{index:02}" for index in range(6))
WIDE = ",".join(f"wide{index:03}" for index in range(100))
VIEWS = {
    "projects": "",
    "runs": "#/p/vision?selected=vis00,vis02,vis04",
    "runs-grouped": "#/p/vision?group=config.optimizer",
    "run": "#/p/vision/runs/vis00?s=0.9",
    "run-failed": "#/p/vision/runs/vis03",
    "compare": f"#/p/vision/runs/{MANY}?s=0.95",
    "compare-groups": f"#/p/vision/runs/{MANY}?group=config.optimizer",
    "compare-100": f"#/p/wide/runs/{WIDE}",
    "full-screen": f"#/p/vision/runs/{MANY}?full=train%2Floss&s=0.97",
    "ranks": "#/p/language/runs/llm1",
    "system": "#/p/vision/runs/vis00/system",
    "distributions": "#/p/vision/runs/vis00/distributions",
    "media": "#/p/vision/runs/vis00/media",
    "table-charts": "#/p/charts/runs/charts/media",
    "logs": "#/p/console/runs/ranks/logs?q=loss",
    "failure": "#/p/console/runs/broken/overview",
    "overview": "#/p/vision/runs/vis05/overview",
    "configuration": "#/p/vision/runs/vis00,vis01,vis03/difference",
    "first-visit": "#/p/brand-new",
}
README = {"compare": "light", "system": "dark"}
"""Views and themes of the README's images, which `--readme` writes to docs/images/."""
POINTED = {"compare": (620, 330), "ranks": (300, 420)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("screenshots"))
    parser.add_argument("--readme", action="store_true", help="take only the images of the README, into docs/images/")
    parser.add_argument("names", nargs="*", help="names of the views to take; default: all")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        print("screenshots: needs Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = sample_server(
            Path(folder), send_gallery, send_charts, send_logs, lambda post: send_wide(post, metrics=60)
        )
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, scheme in README.items() if arguments.readme else ():
            IMAGES.mkdir(parents=True, exist_ok=True)
            take(browser, f"{server.url}/{VIEWS[name]}", IMAGES / f"{name}.png", scheme, 1280)
        for name, address in () if arguments.readme else VIEWS.items():
            if not arguments.names or name in arguments.names:
                for scheme in ("light", "dark"):
                    take(browser, f"{server.url}/{address}", arguments.folder / f"{name}-{scheme}.png", scheme, 1360)
                take(browser, f"{server.url}/{address}", arguments.folder / f"{name}-phone.png", "light", 390)
        browser.close()
        server.stop()
    print(f"screenshots: {arguments.folder}")
    return 0


def take(browser: Browser, url: str, path: Path, scheme: str, width: int) -> None:
    size = {"width": width, "height": 720 if path.parent == IMAGES else 850}
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    settle(page)
    place = POINTED.get(path.stem.removesuffix(f"-{scheme}"))
    if place and width > 1000:
        page.mouse.move(place[0] - 5, place[1])
        page.mouse.move(*place)
    page.screenshot(path=path)
    context.close()


def settle(page: Page) -> None:
    """Wait until all visible charts and images are drawn."""
    page.wait_for_selector("main > *")
    page.wait_for_function(
        """() => !document.querySelector('main > .state[role=status], main > .workspace > .state[role=status]')
            && [...document.querySelectorAll('.card')].every((card) => card.getBoundingClientRect().top > innerHeight
                || card.dataset.drawn || card.matches('.image, .images, .video, .audio, .figure, .html, .table, .text'))
            && [...document.images].every((image) => image.complete)""",
        timeout=120_000,
    )
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 300)))")


if __name__ == "__main__":
    sys.exit(main())
