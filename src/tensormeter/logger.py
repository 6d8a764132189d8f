"""Loggers that never raise: a warning that cannot be written must not end a training.

`logging` raises if standard error is closed, and passes on exceptions of filters and some handlers.
"""

import logging
from typing import Any

__all__ = ["Logger", "get_logger"]


class Logger(logging.LoggerAdapter[logging.Logger]):
    """Writes to a logger of `logging`. Any thread; blocks as long as the program's handlers; usable after a fork.

    Attributes:
        unsaid: Records that no handler could write.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.unsaid = 0

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Write a record, like `logging.Logger.log`. Exceptions of filters and handlers are counted and not raised.

        Other exceptions are raised, such as Ctrl-C while a handler writes.
        """
        try:
            if self.logger.isEnabledFor(level):
                kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
                self.logger.log(level, msg, *args, **kwargs)
        except Exception:
            self.unsaid += 1


def get_logger(name: str = "tensormeter") -> Logger:
    """Get the logger of this name. Callers keep it."""
    return Logger(logging.getLogger(name))
