"""How large one item may be. The client checks it when the item is logged, the server when it arrives, by the same numbers.

Texts, tables, configurations and other log records are measured as JSON in UTF-8 (`fitting.json_bytes`), images by their
encoded bytes. What passes the client fits each limit behind it: the 20 MiB of a Collector's request, the server's bounds of one
request, and one answer of its API.
"""

from typing import Final

__all__ = [
    "ALERT_CHARACTERS",
    "CAPTION_CHARACTERS",
    "CONFIG_BYTES",
    "ENVELOPE_BYTES",
    "EVENT_BYTES",
    "IMAGE_BYTES",
    "PIXEL_BYTES",
    "TABLE_BYTES",
    "TABLE_CELLS",
    "TABLE_IMAGES",
    "TEXT_BYTES",
    "TITLE_CHARACTERS",
    "too_large",
]

TEXT_BYTES: Final = 4 << 20
TABLE_BYTES: Final = 12 << 20
"""Columns and rows of a table, without its images."""
TABLE_CELLS: Final = 700_000
"""Cells of a table; each row counts as one more, and the heading as a row. A server takes 1,500,000 fields in one request, two for each of these."""
TABLE_IMAGES: Final = 256
IMAGE_BYTES: Final = 16 << 20
"""An image in its encoded form; all images of a table together."""
PIXEL_BYTES: Final = 60 << 20
"""An image as it is logged, before it is encoded; all images of a table together."""
CONFIG_BYTES: Final = 1 << 20
ALERT_CHARACTERS: Final = 65_536
"""The text of an alert; the rest is cut off."""
TITLE_CHARACTERS: Final = 1_024
"""The title of an alert; the rest is cut off."""
CAPTION_CHARACTERS: Final = 65_536
"""The caption of an image; the rest is cut off."""
EVENT_BYTES: Final = 4 << 20
"""Any other log record, with its attributes."""
ENVELOPE_BYTES: Final = 64 << 10
"""What attributes and other fields of a text or table may add to it."""


def too_large(size: int, limit: int, what: str, advice: str) -> str:
    """What is wrong with an item over its limit, for people.

    Args:
        size: Its size in bytes.
        limit: What is possible, in bytes.
        what: The item, such as "the text".
        advice: What to do about it.
    """
    return f"{what} has {size:,} bytes, the limit is {limit >> 20} MiB ({limit:,} bytes): {advice}"
