"""A tap on Python's `logging`, which copies each record that a logger passes to its handlers.

The tap replaces `logging.Logger.callHandlers`. A handler on the root logger would change the program: `basicConfig` would do
nothing, warnings of programs without handlers would no longer be printed, and loggers that do not propagate would be missed.
The levels and filters of loggers apply as usual.
"""

import json
import logging
import traceback
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

__all__ = ["LoggingTap", "severity"]

_OWN: Final = ("tensormeter.agent",)
"""Loggers of an agent that runs on a thread. Their records would cause further deliveries, and so further records."""

_MOST_CHARACTERS: Final = 16_000
"""Maximum length of a message or stack trace. The middle of a longer one is omitted."""


def severity(level: int) -> int:
    """Return OpenTelemetry's severity number for a level of `logging`: DEBUG is 5, INFO 9, WARNING 13, ERROR 17, CRITICAL 21."""
    if level < logging.DEBUG:
        return 1  # TRACE
    return min(5 + 4 * (level // 10 - 1) + min(level % 10, 3), 24)


class LoggingTap:
    """The tap of one run. There is at most one at a time."""

    def __init__(self, level: int, put: Callable[[str, int], None], logging_in: set[int]) -> None:
        """
        Args:
            level: Lowest level to copy.
            put: Function that receives each record as JSON, and its time in nanoseconds. Its exceptions are ignored.
            logging_in: Set to which a thread belongs while it writes a record that was copied.
        """
        self._original = original = logging.Logger.callHandlers
        state = self._state = [True]

        def callHandlers(logger: logging.Logger, record: logging.LogRecord) -> None:  # noqa: N802 - as in `logging`
            is_copied = False
            try:
                if state[0] and record.levelno >= level and not str(record.name).startswith(_OWN):
                    put(_encoded(record), int(record.created * 1e9))
                    is_copied = True
            except Exception:  # noqa: S110 - arguments that do not fit the message, or whose own code raises
                pass
            ident = get_ident()
            if not is_copied or ident in logging_in:  # a handler logs
                original(logger, record)
                return
            logging_in.add(ident)
            try:
                original(logger, record)
            finally:
                logging_in.discard(ident)

        self._replacement = callHandlers
        logging.Logger.callHandlers = callHandlers  # type: ignore[assignment, method-assign]

    def remove(self) -> None:
        """Restore `logging`. If other code has replaced the method meanwhile, only stop copying."""
        self._state[0] = False
        if logging.Logger.callHandlers is self._replacement:
            logging.Logger.callHandlers = self._original  # type: ignore[method-assign]


def _encoded(record: logging.LogRecord) -> str:
    fields: dict[str, Any] = {
        "severity": severity(record.levelno),
        "level": "WARN" if record.levelno == logging.WARNING else str(record.levelname),
        "name": str(record.name),
        "message": _shortened(record.getMessage()),
        "path": record.pathname,
        "function": record.funcName,
        "line": record.lineno,
    }
    if record.exc_info and record.exc_info[0] is not None:
        kind, error, trace = record.exc_info
        fields["exception"] = {
            "type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
            "message": _shortened(_text(error)),
            "stacktrace": _shortened(record.exc_text or "".join(traceback.format_exception(kind, error, trace))),
        }
    return json.dumps(fields)


def _text(error: BaseException | None) -> str:
    try:
        return str(error)
    except Exception:  # the exception's own code may raise anything
        return ""


def _shortened(text: str) -> str:
    half = _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
