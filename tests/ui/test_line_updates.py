"""Updates of the lines of charts, in Node: points that a line has already are not appended again."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

UI = Path(__file__).parents[2] / "ui"

SCRIPT = """
import { readFileSync } from "node:fs";
import { merge } from "./lineUpdate.mjs";
const line = ({ x, y, total, ...rest }) => ({
  ...rest, total, x: Float64Array.from(x), y: Float64Array.from(y, (value) => value ?? Number.NaN),
});
const results = JSON.parse(readFileSync(0, "utf8")).map(({ answers, points, x }) =>
  answers.map((answer) => answer.map(line)).reduce((before, fresh) => merge(before, fresh, points, x), [])
    .map(({ x, y, ...rest }) => ({ ...rest, x: [...x], y: [...y] })));
console.log(JSON.stringify(results));
"""

Line = dict[str, Any]


def line(x: list[float], y: list[float | None], run: str = "r", total: int | None = None) -> Line:
    named = {"run": run, "process": "p", "metric": "v", "attributes": {}}
    return named | {"x": x, "y": y, "total": len(x) if total is None else total}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled module and a script that calls it."""
    esbuild = UI / "node_modules" / ".bin" / "esbuild"
    if shutil.which("node") is None or not esbuild.exists():
        pytest.skip("needs Node and the page's packages")
    folder = tmp_path_factory.mktemp("bundle")
    source = UI / "src" / "chart" / "lineUpdate.ts"
    built = f"--outfile={folder / 'lineUpdate.mjs'}"
    subprocess.run([esbuild, source, "--bundle", "--format=esm", "--log-level=warning", built], check=True)
    (folder / "merge.mjs").write_text(SCRIPT)
    return folder


def merged(bundle: Path, *chains: list[list[Line]], points: int = 1000, x: str = "step") -> list[list[Line]]:
    """Merge the answers of each chain."""
    cases = json.dumps([{"answers": answers, "points": points, "x": x} for answers in chains])
    done = subprocess.run(["node", bundle / "merge.mjs"], input=cases.encode(), capture_output=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_points_that_a_line_has_are_not_appended_again(bundle: Path) -> None:
    first = line([1, 2, 3], [0.5, None, 2.5], total=30)
    chains: list[list[list[Line]]] = [
        [[first], [line([2, 3, 4], [None, 2.5, 3.5])]],  # two points again, one of them NaN
        [[first], [line([3, 4], [9.0, 3.5])]],  # another value at the same place
        [[first], [line([1, 2, 3], [0.5, None, 2.5])]],  # nothing new
        [[first], [line([0, 2.5], [7.0, 8.0])]],  # late points
        [[first], [line([3], [2.5], run="other")]],  # another line
        [[first], [line([4, 4], [1.0, 1.0])]],  # equal points within one response
    ]
    assert [[(got["x"], got["y"], got["total"]) for got in lines] for lines in merged(bundle, *chains)] == [
        [([1, 2, 3, 4], [0.5, None, 2.5, 3.5], 31)],
        [([1, 2, 3, 3, 4], [0.5, None, 2.5, 9.0, 3.5], 32)],
        [([1, 2, 3], [0.5, None, 2.5], 30)],
        [([0, 1, 2, 2.5, 3], [7.0, 0.5, None, 8.0, 2.5], 32)],
        [([1, 2, 3], [0.5, None, 2.5], 30), ([3], [2.5], 1)],
        [([1, 2, 3, 4, 4], [0.5, None, 2.5, 1.0, 1.0], 32)],
    ]


def test_points_along_another_metric_may_be_equal(bundle: Path) -> None:
    """Within an epoch, all points have the same x, and may have the same value."""
    answers = [[line([1, 1], [0.5, 0.5])], [line([1, 1], [0.5, 0.5])]]
    ((got,),) = merged(bundle, answers, x="metric:epoch")
    assert (got["x"], got["y"], got["total"]) == ([1] * 4, [0.5] * 4, 4)


def test_overlapping_responses_add_up_to_the_line(bundle: Path) -> None:
    generator = np.random.default_rng(1)
    chains, lines = [], []
    for _ in range(200):
        x = np.cumsum(generator.integers(1, 3, 60)).tolist()
        y = generator.integers(0, 3, 60).astype(float).tolist()
        ends = [0, *np.unique(generator.integers(1, 60, 4)).tolist(), 60]
        starts = [max(0, end - int(generator.integers(0, 10))) for end in ends[:-1]]
        chains.append([[line(x[a:b], y[a:b])] for a, b in zip(starts, ends[1:], strict=True)])
        lines.append([line(x, y)])
    assert merged(bundle, *chains) == lines


def test_long_lines_are_thinned_and_keep_their_total(bundle: Path) -> None:
    answers = [[line([*range(a, a + 50)], [float(i) for i in range(a, a + 50)])] for a in range(0, 1000, 50)]
    ((got,),) = merged(bundle, answers, points=100)
    assert (got["total"], got["x"][0], got["x"][-1]) == (1000, 0, 999)
    assert len(got["x"]) <= 400
