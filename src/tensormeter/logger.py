"""Loggers that never raise, because a warning that cannot be written must not end the training.

The `logging` module raises if standard error is closed, and propagates exceptions from filters and some handlers.
"""

import logging
from typing import Any

__all__ = ["Logger", "get_logger"]


class Logger(logging.LoggerAdapter[logging.Logger]):
    """Wrapper of a `logging.Logger`, for any thread and after a fork. It blocks as long as the program's handlers do.

    Attributes:
        unsaid: Number of records that no handler could write.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.unsaid = 0

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a record, like `logging.Logger.log`. Exceptions from filters and handlers are counted, not raised.

        Others, such as the KeyboardInterrupt of a Ctrl-C while a handler writes, are raised.
        """
        try:
            if self.logger.isEnabledFor(level):
                kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # report the caller's line, not this one
                self.logger.log(level, msg, *args, **kwargs)
        except Exception:
            self.unsaid += 1


def get_logger(name: str = "tensormeter") -> Logger:
    """Create a wrapper of the logger with this name. Callers should keep it."""
    return Logger(logging.getLogger(name))
