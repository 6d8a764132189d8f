"""Line charts in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotext
from numpy.typing import NDArray

from tensormeter.cli.terminal import plain

__all__ = ["draw_chart"]

HEIGHT: Final = 14
MAX_WIDTH: Final = 100


def draw_chart(metric: str, series: Sequence[Mapping[str, Any]], width: int, *, color: bool) -> str:
    """Draw all series of a metric against steps, or against seconds since the first point if there are no steps.

    Args:
        metric: Title of the chart.
        series: Series from the API, requested with x=step. Non-finite points are not drawn.
        width: Width of the terminal in columns.
        color: Whether to use ANSI colors.

    Returns:
        Lines of text, which contain ANSI sequences only if `color` is set.
    """
    width = min(width, MAX_WIDTH)
    stepped = any(step is not None for line in series for step in line["step"])
    origin = min((time for line in series for time in line["time"]), default=0)
    figure = plotext.figure.clear()
    figure.theme("simple")
    figure.plot_size(width, HEIGHT)
    figure.title(plain(metric))
    figure.label("step" if stepped else "seconds", "x")
    drawn = 0
    for line in series:
        along = line["step"] if stepped else [(time - origin) / 1e9 for time in line["time"]]
        positions = _gap_positions(line.get("gaps", ()), line["time"], along)
        xs, values = _finite(along, line["value"])
        if len(xs):
            # More than two sections per column would exceed the resolution of a terminal.
            xs, values = _thin(xs, values, 2 * width)
            signal = figure.signal(xs.tolist(), values.tolist())
            signal.lines()
            # Omit the line segment from a to b if a <= position < b.
            for index in np.unique(np.searchsorted(xs, positions, "right")).tolist():
                signal.line(index, False)
            figure.draw(signal)
            drawn += 1
    if not drawn:
        return f"{plain(metric)}: no finite values to draw"
    return str(figure.build().string(colorless=not color)).rstrip("\n")


def _finite(
    xs: Sequence[float | None],
    values: Sequence[float | str],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the points whose x and value are finite, sorted by x."""
    columns = np.array([xs, values], np.float64)  # None and "NaN" become NaN, "Infinity" becomes infinity
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    columns = columns[:, np.argsort(columns[0], kind="stable")]
    return columns[0], columns[1]


def _gap_positions(gaps: Sequence[int], times: Sequence[int], along: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the x value of the last point before each gap. Gaps before the first point are skipped."""
    if not gaps or not times:
        return np.empty(0)
    xs = np.array(along, np.float64)
    known = np.flatnonzero(~np.isnan(xs))
    order = known[np.argsort(np.array(times, np.int64)[known], kind="stable")]
    index = np.searchsorted(np.array(times, np.int64)[order], np.array(gaps, np.int64), "right") - 1
    return np.unique(xs[order[index[index >= 0]]])


def _thin(
    xs: NDArray[np.float64],
    values: NDArray[np.float64],
    buckets: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Divide the points into `buckets` sections, and keep each section's lowest and highest point, in order."""
    if len(xs) <= 2 * buckets:
        return xs, values
    indices: list[int] = []
    for bucket in np.array_split(np.arange(len(xs)), buckets):
        indices += sorted({int(bucket[values[bucket].argmin()]), int(bucket[values[bucket].argmax()])})
    return xs[indices], values[indices]
