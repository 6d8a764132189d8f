"""Plotly figures."""

import sys
from typing import Any

from tensormeter.conventions.fitting import json_bytes, json_text
from tensormeter.conventions.limits import TEXT_BYTES, too_large
from tensormeter.conventions.semconv import FIGURE_EVENT
from tensormeter.record.media.item import EventContent, Media
from tensormeter.record.values.outcomes import Refused
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
        text = json_text(body)
        size = json_bytes(body, text)
        if size > TEXT_BYTES:
            advice = "log a figure with fewer points, or an Image of it"
            raise Refused(too_large(size, TEXT_BYTES, "the figure", advice), Drop.MEDIA_TOO_LARGE)
        return EventContent(FIGURE_EVENT, text)


def is_plotly_figure(value: object) -> bool:
    """Return whether a value is a Plotly figure. Does not import Plotly."""
    figure_type = getattr(sys.modules.get("plotly.basedatatypes"), "BaseFigure", None)
    return figure_type is not None and issubclass(type(value), figure_type)
