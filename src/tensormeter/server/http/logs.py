"""The server's log on standard error: human-readable lines, or one JSON object per line for log collectors."""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

__all__ = ["ACCESS", "LogFormat", "RateLimitedLog", "configure_logs"]

LogFormat = Literal["text", "json"]

ACCESS: Final = logging.getLogger("tensormeter.server.access")
"""Logger that writes one INFO record per request. It is off by default.

The attribute `fields` of each record contains the details of the request.
"""


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        fields: dict[str, Any] = getattr(record, "fields", {})
        return " ".join([text, *(f"{name}={_word(value)}" for name, value in fields.items())])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(
            document, default=str
        )  # written as ASCII, so that text from a client contains no terminal control sequences


class RateLimitedLog:
    """Log with at most one warning per interval. Each warning includes the number of suppressed ones. For one thread."""

    def __init__(self, logger: logging.Logger, seconds: float = 60.0) -> None:
        """Args:
        logger: Destination of the warnings.
        seconds: Minimum time between two warnings, in seconds.
        """
        self._logger = logger
        self._seconds = seconds
        self._next = 0.0
        self._suppressed = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a warning, or count it as suppressed."""
        now = time.monotonic()
        if now < self._next:
            self._suppressed += 1
            return
        more = f" ({self._suppressed} more since the previous such line)" if self._suppressed else ""
        self._next, self._suppressed = now + self._seconds, 0
        self._logger.warning("%s%s", message % arguments, more)


def configure_logs(form: LogFormat, *, access: bool) -> None:
    """Send all of the process's logs to standard error. A second call replaces the first configuration.

    Args:
        form: Format of the lines: `text` for people, or `json` for log collectors. JSON lines escape all non-ASCII
            characters.
        access: Whether to log each request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "_of_tensormeter", False):
            root.removeHandler(old)
    handler._of_tensormeter = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    ACCESS.setLevel(logging.INFO if access else logging.WARNING)


def _word(value: object) -> str:
    """Format a value without control characters, in quotes if it contains spaces."""
    text = json.dumps(value, default=str)
    return text[1:-1] if isinstance(value, str) and " " not in text else text
