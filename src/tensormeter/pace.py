"""How fast, and in what pieces, one destination is sent what lies in the spool."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tensormeter.errors import SettingsError

__all__ = ["PACE_OPTIONS", "Pace", "UploadRate"]

PACE_OPTIONS: Final = ("max_upload_bytes_per_second", "max_export_batch_size", "schedule_delay")
"""Options that every destination has. They are delivery's, and exporters do not see them."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Of one destination.

    A run's rows are encoded once, into requests of at most the run's `max_export_batch_size` points, every `schedule_delay`
    seconds; those lie in the spool for all destinations. What a destination has of its own is done when they are sent:
    smaller requests are joined, larger ones are divided, and rows stay whole.

    Attributes:
        max_upload_bytes_per_second: Bytes a second on average, of bodies as they are in the spool (gzip); None for no limit.
        max_export_batch_size: Points or records of one request at most (a row is never divided).
        schedule_delay: Seconds that a request waits in the spool for others to go with it.
        own: Whether size or delay are the destination's own. If not, requests go out as they are in the spool.
    """

    max_upload_bytes_per_second: int | None
    max_export_batch_size: int
    schedule_delay: float = 0.0
    own: bool = False

    @classmethod
    def of(
        cls,
        destination: str,
        options: Mapping[str, str],
        *,
        max_upload_bytes_per_second: int | None,
        max_export_batch_size: int,
        schedule_delay: float,
    ) -> "Pace":
        """From a destination's options, and the run's settings for what they do not say.

        Raises:
            SettingsError: An option cannot be used.
        """
        rate, size, delay = (options.get(name) for name in PACE_OPTIONS)

        def refuse(name: str, expected: str) -> SettingsError:
            return SettingsError(f"{destination}.{name}: expected {expected}, got {options[name]!r}")

        if rate is not None:
            if not _is_count(rate):
                raise refuse("max_upload_bytes_per_second", "a number of bytes from 1")
            max_upload_bytes_per_second = int(rate)
        if size is not None:
            if not _is_count(size):
                raise refuse("max_export_batch_size", "a number of points from 1")
            max_export_batch_size = int(size)
        seconds = 0.0
        if delay is not None:
            try:
                seconds = float(delay)
            except ValueError:
                seconds = -1.0
            if not schedule_delay <= seconds <= 3600:
                raise refuse(
                    "schedule_delay", f"seconds from the run's own schedule_delay, which is {schedule_delay:g}, to 3600"
                )
        return cls(
            max_upload_bytes_per_second=max_upload_bytes_per_second,
            max_export_batch_size=max_export_batch_size,
            schedule_delay=seconds,
            own=size is not None or delay is not None,
        )


class UploadRate:
    """Keeps the bytes that are sent to one destination within its `max_upload_bytes_per_second`, on average. Any thread."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, size: int) -> float:
        """Count bytes that are about to be sent. Returns the seconds to wait before that. Does not block."""
        if self._bytes_per_second is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self._bytes_per_second
            return start - now


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text) <= 1 << 40
