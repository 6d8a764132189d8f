"""The module `wandb.data_types`."""

from tensormeter.record.media.item import Media
from tensormeter.wandb.media import (
    Audio,
    BoundingBoxes2D,
    Classes,
    Graph,
    Histogram,
    Html,
    Image,
    ImageMask,
    Molecule,
    Object3D,
    Plotly,
    Video,
)
from tensormeter.wandb.table import Table

__all__ = [
    "Audio",
    "BatchableMedia",
    "BoundingBoxes2D",
    "Classes",
    "Graph",
    "Histogram",
    "Html",
    "Image",
    "ImageMask",
    "Media",
    "Molecule",
    "Object3D",
    "Plotly",
    "Table",
    "Video",
    "WBValue",
]

WBValue = BatchableMedia = Media
