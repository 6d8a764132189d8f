"""Loggers that never raise, because a warning that cannot be written must not end the training.

The `logging` module raises if standard error is closed, and propagates exceptions from filters and some handlers.
"""

import logging
from typing import Any

__all__ = ["Logger", "get_logger"]


class Logger(logging.LoggerAdapter[logging.Logger]):
    """Thread-safe and fork-safe wrapper of a `logging.Logger`. Calls block while the program's handlers run.

    Attributes:
        unsaid: Number of records lost because a filter or handler raised an exception.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.unsaid = 0

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a record, like `logging.Logger.log`. Exceptions from filters and handlers are counted, not raised.

        A KeyboardInterrupt, or any other exception that is not an `Exception`, is raised.
        """
        try:
            if self.logger.isEnabledFor(level):
                kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # report the caller's line, not this one
                self.logger.log(level, msg, *args, **kwargs)
        except Exception:  # a handler of the script may raise anything; `unsaid` counts the messages
            self.unsaid += 1


def get_logger(name: str = "tensormeter") -> Logger:
    """Create a wrapper of the logger with this name. Call this once per module."""
    return Logger(logging.getLogger(name))
