"""W&B's custom charts (`wandb.plot`) as charts of tables."""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["charts_of"]

_KINDS: Final = {
    "wandb/line/v0": ("line", {"x": "x", "y": "y", "series": "stroke"}),
    "wandb/lineseries/v0": ("line", {"x": "step", "y": "lineVal", "series": "lineKey"}),
    "wandb/bar/v0": ("bar", {"x": "label", "y": "value"}),
    "wandb/scatter/v0": ("scatter", {"x": "x", "y": "y"}),
    "wandb/histogram/v0": ("histogram", {"x": "value"}),
    "wandb/confusion_matrix/v1": ("confusion_matrix", {"x": "Predicted", "y": "Actual", "series": "nPredictions"}),
    "wandb/area-under-curve/v0": ("line", {"x": "x", "y": "y", "series": "class"}),
}
"""Kind of chart by W&B's name, and the name of the setting that holds the column for each axis."""

_CURVES: Final = {("recall", "precision"): "pr_curve", ("fpr", "tpr"): "roc_curve"}


def charts_of(config: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the charts that W&B stores in a run's configuration, by the key of the table that each draws.

    Returns:
        The key under which the chart was logged, and the chart as in `Table`.
    """
    charts: dict[str, tuple[str, dict[str, Any]]] = {}
    own = config.get("_wandb")
    visualize = own.get("visualize") if isinstance(own, Mapping) else None
    for key, panel in visualize.items() if isinstance(visualize, Mapping) else ():
        settings = panel.get("panel_config") if isinstance(panel, Mapping) else None
        if not isinstance(settings, Mapping) or settings.get("panelDefId") not in _KINDS:
            continue
        kind, axes = _KINDS[settings["panelDefId"]]
        fields, titles = (_mapping(settings.get(name)) for name in ("fieldSettings", "stringSettings"))
        chart: dict[str, Any] = {
            axis: column for axis, name in axes.items() if isinstance(column := fields.get(name), str)
        }
        chart["kind"] = _CURVES.get((chart.get("x", ""), chart.get("y", "")), kind) if "class" in fields else kind
        if isinstance(title := titles.get("title"), str) and title:
            chart["title"] = title
        charts[_table_key(settings) or key] = (str(key), chart)
    return charts


def _table_key(settings: Mapping[str, Any]) -> str:
    """Return the key of the table that a panel queries, or ""."""
    pending: list[Any] = [settings.get("userQuery")]
    for _ in range(1000):
        if not pending:
            break
        part = pending.pop()
        if isinstance(part, Mapping):
            if part.get("name") == "tableKey" and isinstance(value := part.get("value"), str):
                return value
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
