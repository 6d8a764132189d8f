"""Plotly figures."""

import sys
from typing import Any

from tensormeter.conventions.semconv import FIGURE_EVENT
from tensormeter.record.media.item import EventContent, Media, text_content
from tensormeter.ring.format import Drop

__all__ = ["PlotlyFigure", "is_plotly_figure"]


class PlotlyFigure(Media):
    """A Plotly figure. `pack` converts it to JSON of up to 4 MiB, which the page draws."""

    def __init__(self, figure: Any) -> None:
        """
        Args:
            figure: The figure. It is converted by `pack`.
        """
        self._figure = figure

    def pack(self) -> EventContent:
        body = {"figure": str(self._figure.to_json()), "caption": ""}
        advice = "log a figure with fewer points, or an Image of it"
        return text_content(FIGURE_EVENT, body, "the figure", advice, Drop.MEDIA_TOO_LARGE)


def is_plotly_figure(value: object) -> bool:
    """Return whether a value is a Plotly figure. Does not import Plotly."""
    figure_type = getattr(sys.modules.get("plotly.basedatatypes"), "BaseFigure", None)
    return figure_type is not None and issubclass(type(value), figure_type)
