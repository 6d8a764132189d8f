"""The server's log on standard error: lines for people, or a JSON object a line for what collects them."""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

__all__ = ["ACCESS", "LogFormat", "Seldom", "configure_logs"]

LogFormat = Literal["text", "json"]

ACCESS: Final = logging.getLogger("tensormeter.server.access")
"""One record a request, with its particulars under `fields`; at INFO, so only if it was asked for."""


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
        return json.dumps(document, default=str)  # ASCII: nothing that a client sent can move a cursor


class Seldom:
    """Logs warnings of one kind, one at most in an interval, and says how many it left out. For one thread."""

    def __init__(self, logger: logging.Logger, seconds: float = 60.0) -> None:
        """Args:
        logger: Where to.
        seconds: The interval.
        """
        self._logger = logger
        self._seconds = seconds
        self._next = 0.0
        self._left_out = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a warning, or count it."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._next, self._left_out = now + self._seconds, 0
        self._logger.warning("%s%s", message % arguments, more)


def configure_logs(form: LogFormat, *, access: bool) -> None:
    """Send what the server logs to standard error. For the whole process; a second call takes the place of the first.

    Args:
        form: `text`, or `json`, which escapes everything that is not ASCII.
        access: Whether each request is logged as well.
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
    """Without control characters and spaces."""
    text = json.dumps(value, default=str)
    return text[1:-1] if isinstance(value, str) and " " not in text else text
