"""Paths of artifacts that tensormeter's destination `mlflow` has written."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from tensormeter.importers.run_requests import MOST_INTEGER

__all__ = ["PlacedFile", "alert_of", "place_of"]

_PATH: Final = re.compile(
    r"(?P<folder>images|tables|texts|videos|audio|figures|html)/(?P<key>.+?)-(?P<number>-?\d{1,19})(-(?P<time>\d{17,19}))?"
    r"(/(?P<place>[0-9-]{1,20}))?\.\w+"
)
_LEAST_TIME: Final = 10**17
"""Least number that is a time in nanoseconds and not a step: the year 1973."""

_ALERT: Final = re.compile(r"alerts/.*\d+\.json")


@dataclass(frozen=True)
class PlacedFile:
    """The place of a media item's file.

    Attributes:
        folder: Folder of the item's kind, such as `images`.
        key: Key of the item, with the characters that MLflow permits.
        step: Step, or None.
        time: Time in nanoseconds since the Unix epoch, or None.
        place: Number of the image in a list of images, or row and column of an image in a table; "" for other files.
    """

    folder: str
    key: str
    step: int | None
    time: int | None
    place: str


def place_of(path: str) -> PlacedFile | None:
    """Return the place that a path describes; None if the destination has not written the file."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    number = int(match["number"])
    is_time = number >= _LEAST_TIME
    time = number if is_time else int(match["time"]) if match["time"] else None
    if max(abs(number), time or 0) > MOST_INTEGER:
        return None
    return PlacedFile(match["folder"], match["key"], None if is_time else number, time, match["place"] or "")


def alert_of(path: str, data: bytes) -> dict[str, Any] | None:
    """Return title, text, level, time and step of an alert; None if the file is not an alert."""
    if not _ALERT.fullmatch(path):
        return None
    try:
        alert = json.loads(data)
        step = alert["step"]
        return {
            "title": str(alert["title"]),
            "text": str(alert["text"]),
            "level": str(alert["level"]),
            "time": int(alert["time"]),
            "step": step if isinstance(step, int) else None,
        }
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
