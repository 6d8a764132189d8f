"""Limits on the size of an item. The client checks them when the item is logged, and the server when it arrives.

Images are measured by their encoded bytes. Texts, tables, configurations and other log records are measured as JSON in
UTF-8 (`fitting.json_bytes`). Items that the client accepts also stay within later limits: the Collector's 20 MiB per
request, and the server's limits on requests and on responses from its API.
"""

from typing import Final

__all__ = [
    "ALERT_CHARACTERS",
    "CAPTION_CHARACTERS",
    "CHART_COLUMNS",
    "CODE_BYTES",
    "CONFIG_BYTES",
    "ENVELOPE_BYTES",
    "EVENT_BYTES",
    "IMAGE_BYTES",
    "MEDIA_BYTES",
    "METRIC_NAMES",
    "NESTED_MAPPINGS",
    "PIXEL_BYTES",
    "REPEATED_TEXT_CHARACTERS",
    "TABLE_BYTES",
    "TABLE_CELLS",
    "TABLE_IMAGES",
    "TEXT_BYTES",
    "TITLE_CHARACTERS",
    "too_large",
]

TEXT_BYTES: Final = 4 << 20
TABLE_BYTES: Final = 12 << 20
"""Limit for the columns and rows of a table, without its images, in bytes."""
TABLE_CELLS: Final = 700_000
"""Maximum number of table cells. The heading counts as a row, and each row counts as one additional cell.

A request may contain 1,500,000 fields, and a cell takes two of them.
"""
CHART_COLUMNS: Final = 50
"""Maximum number of columns that a chart of a table draws as separate lines."""
TABLE_IMAGES: Final = 256
"""Maximum number of images in a table or a list of images."""
IMAGE_BYTES: Final = 16 << 20
"""Limit for an encoded image, and for all encoded images in a table together, in bytes."""
MEDIA_BYTES: Final = 16 << 20
"""Limit for an encoded video or audio clip, in bytes."""
PIXEL_BYTES: Final = 60 << 20
"""Limit for an image's pixels before encoding, for the pixels of all images in a table together, and for the frames of a
video or the samples of an audio clip, in bytes."""
REPEATED_TEXT_CHARACTERS: Final = 256
"""Length up to which a string that is logged repeatedly without a change is stored once, in characters."""
NESTED_MAPPINGS: Final = 32
"""Maximum depth of nested mappings in a log call."""
CONFIG_BYTES: Final = 1 << 20
METRIC_NAMES: Final = 500_000
"""Maximum number of metric names in a run, and by default in a process."""
ALERT_CHARACTERS: Final = 65_536
"""Limit for the text of an alert, in characters; longer text is truncated."""
TITLE_CHARACTERS: Final = 1_024
"""Limit for the title of an alert, in characters; longer titles are truncated."""
CAPTION_CHARACTERS: Final = 65_536
"""Limit for the caption of an image, in characters; longer captions are truncated."""
CODE_BYTES: Final = 256 << 10
"""Limit for the source of a run's script, and for its uncommitted changes, in bytes; what is longer is cut."""
EVENT_BYTES: Final = 4 << 20
"""Limit for any other log record, including its attributes, in bytes."""
ENVELOPE_BYTES: Final = 64 << 10
"""Limit for the attributes and other fields of a text or table, in bytes."""


def too_large(size: int, limit: int, what: str, advice: str) -> str:
    """Return the message for an item that is too large.

    Args:
        size: Size of the item in bytes.
        limit: Limit in bytes.
        what: Noun for the item, such as "the text".
        advice: Remedy.
    """
    return f"{what} has {size:,} bytes, but the limit is {limit >> 20} MiB ({limit:,} bytes); {advice}"
