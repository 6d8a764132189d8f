"""Limits on the size of an item, checked by the client when it is logged and by the server when it arrives.

Texts, tables, configurations and other log records are measured as JSON in UTF-8 (`fitting.json_bytes`), images by their encoded
bytes. Items that pass the client also fit later limits: the 20 MiB of a Collector's request, and the server's limits on a request
and on a response of its API.
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
"""Limit for the columns and rows of a table, without its images."""
TABLE_CELLS: Final = 700_000
"""Maximum cells of a table; each row, and the heading, counts as one more. A server accepts 1,500,000 fields in a request, two for each."""
TABLE_IMAGES: Final = 256
IMAGE_BYTES: Final = 16 << 20
"""Limit for an encoded image, and for all encoded images of a table together."""
PIXEL_BYTES: Final = 60 << 20
"""Limit for the pixels of an image before encoding, and of all images of a table together."""
CONFIG_BYTES: Final = 1 << 20
ALERT_CHARACTERS: Final = 65_536
"""Limit for the text of an alert; longer texts are truncated."""
TITLE_CHARACTERS: Final = 1_024
"""Limit for the title of an alert; longer titles are truncated."""
CAPTION_CHARACTERS: Final = 65_536
"""Limit for the caption of an image; longer captions are truncated."""
EVENT_BYTES: Final = 4 << 20
"""Limit for any other log record, with its attributes."""
ENVELOPE_BYTES: Final = 64 << 10
"""Limit for the attributes and other fields of a text or table."""


def too_large(size: int, limit: int, what: str, advice: str) -> str:
    """Return the message for an item that is too large.

    Args:
        size: Size of the item in bytes.
        limit: Limit in bytes.
        what: Noun for the item, such as "the text".
        advice: Remedy.
    """
    return f"{what} has {size:,} bytes, the limit is {limit >> 20} MiB ({limit:,} bytes): {advice}"
