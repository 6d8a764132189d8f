"""Definitions of metrics."""

from typing import Any, Final

from tensormeter.wandb.notices import warn_ignored

__all__ = ["Metric", "definition"]

_STATISTICS: Final = {"min": "min", "max": "max", "mean": "mean", "last": "last", "copy": "last", "none": "none"}


class Metric:
    """A definition, which `define_metric` returns.

    Attributes:
        name: Name of the metric, or a pattern.
        step_metric: Name of the metric that charts use as the x axis, or None.
        summary: Statistics for the summary, as given.
        goal: `minimize`, `maximize` or None.
    """

    def __init__(self, name: str, step_metric: Any = None, summary: str | None = None, goal: str | None = None) -> None:
        self.name = name
        self.step_metric: str | None = getattr(step_metric, "name", step_metric)
        self.summary = summary
        self.goal = goal


def definition(metric: Metric) -> tuple[str, str | None, str | None]:
    """Return the pattern, the statistic and the x axis for `tensormeter.Run.define_metric`."""
    pattern = metric.name.replace("[", "[[]").replace("?", "[?]")
    axis = None if metric.step_metric in (None, "", "_step") else str(metric.step_metric)
    words = [word.strip() for word in str(metric.summary or "").lower().split(",") if word.strip()]
    known = [statistic for word in words if (statistic := _statistic(word, metric.goal)) is not None]
    for word in words:
        if _statistic(word, metric.goal) is None:
            warn_ignored(
                f"define_metric(summary={word!r})",
                "the summary keeps min, max, mean, last or none of a metric; all can be read",
            )
    return pattern, known[0] if known else None, axis


def _statistic(word: str, goal: str | None) -> str | None:
    if word == "best":
        return "max" if goal == "maximize" else "min"
    return _STATISTICS.get(word)
