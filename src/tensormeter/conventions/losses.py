"""Descriptions of loss reasons. The ring, the spool and the server count losses by these reasons."""

from collections.abc import Mapping, Sequence
from typing import Final

from tensormeter.conventions.limits import (
    CONFIG_BYTES,
    IMAGE_BYTES,
    MEDIA_BYTES,
    TABLE_BYTES,
    TABLE_CELLS,
    TABLE_IMAGES,
    TEXT_BYTES,
)

__all__ = ["REASONS", "describe_losses"]

_MIB: Final = 1 << 20

REASONS: Final[Mapping[str, tuple[str, str, str]]] = {
    "ring_full": ("point", "the ring buffer was full", "raise TENSORMETER_BUFFER_BYTES, or log less often"),
    "unsupported_value": ("value", "unsupported type or name", "earlier warnings name up to 1,000 keys"),
    "too_many_names": ("point", "too many different metrics were logged", "use fewer names"),
    "too_many_layouts": ("point", "too many different metrics were logged", "use fewer names"),  # of earlier versions
    "device_unfinished": ("point", "not computed by the device before the process ended", ""),
    "media_full": (
        "item",
        "too many media items were waiting for the agent",
        "log fewer at a time, or raise TENSORMETER_MEDIA_BUFFER_BYTES",
    ),
    "text_too_large": ("text", f"larger than {TEXT_BYTES // _MIB} MiB", "log it in parts"),
    "table_too_large": (
        "table",
        f"larger than {TABLE_BYTES // _MIB} MiB or {TABLE_CELLS:,} cells, or with too many images",
        "log it in parts",
    ),
    "image_too_large": (
        "image",
        f"larger than {IMAGE_BYTES // _MIB} MiB in encoded form, or more than {TABLE_IMAGES} in one list",
        "log smaller ones, JPEGs, or fewer at a time",
    ),
    "media_too_large": (
        "item",
        f"audio or video above {MEDIA_BYTES // _MIB} MiB, or HTML or a figure above {TEXT_BYTES // _MIB} MiB",
        "log shorter or smaller ones",
    ),
    "none_value": ("value", "None was logged", "log a number, or leave the key out"),
    "config_too_large": (
        "configuration value",
        f"the configuration was larger than {CONFIG_BYTES // _MIB} MiB, so its largest values were left out",
        "log them as a table or text",
    ),
    "media_damaged": ("item", "a media item could not be read or encoded", ""),
    "console_full": (
        "line of output",
        "the program printed faster than output is recorded",
        "",
    ),
    "console_limit": (
        "line of output",
        "the program had printed more than is recorded",
        "raise TENSORMETER_CONSOLE_MAX_BYTES",
    ),
    "spool_full_logs": ("record", "the spool was full of data that could not be delivered (console and logs)", ""),
    "spool_full_system": ("point", "the spool was full of data that could not be delivered (system metrics)", ""),
    "spool_full_media": ("item", "the spool was full of data that could not be delivered (media)", ""),
    "spool_full_scalars": (
        "point",
        "the spool was full of data that could not be delivered, so the history was thinned",
        "raise TENSORMETER_SPOOL_MAX_BYTES",
    ),
    "damaged": ("point", "could no longer be read", "check the disk"),
    "refused": ("point or event", "refused by the receiver", ""),
}
"""Noun for the counted items, cause, and remedy (or ""), by reason."""

_PLURALS: Final = {"point or event": "points or events", "line of output": "lines of output"}


def describe_losses(counts: Mapping[str, int], names: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return a sentence for each reason.

    An example is ``3 texts: larger than 4 MiB; log it in parts``.

    Args:
        counts: Counts by reason. In unknown reasons, underscores become spaces.
        names: Quoted examples of lost items, by reason.
    """
    return [_sentence(reason, count, (names or {}).get(reason, ())) for reason, count in counts.items()]


def _sentence(reason: str, count: int, names: Sequence[str]) -> str:
    noun, why, advice = REASONS.get(reason, ("item", reason.replace("_", " "), ""))
    nouns = noun if count == 1 else _PLURALS.get(noun, f"{noun}s")
    examples = f" ({', '.join(names)}{', ...' if count > len(names) else ''})" if names else ""
    return f"{count:,} {nouns}{examples}: {why}{f'; {advice}' if advice else ''}"
