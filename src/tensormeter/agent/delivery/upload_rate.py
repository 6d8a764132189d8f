"""Limit on the bytes per second that are sent to one destination."""

import threading
import time

__all__ = ["UploadRate"]


class UploadRate:
    """Limiter of the average rate at which bytes are sent to one destination. Any thread may use it."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, size: int) -> float:
        """Reserve bytes to send, and return the seconds to wait before sending them. This does not block."""
        if self._bytes_per_second is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self._bytes_per_second
            return start - now
