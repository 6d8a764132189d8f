"""Descriptors that this process keeps, although the program may close or reuse any descriptor."""

import contextlib
import fcntl
import os
from typing import Final

__all__ = ["KeptDescriptor"]

_ABOVE: Final = 64
"""Lower bound of their numbers, so that none has a number that the relay uses, or that programs expect to be free."""


class KeptDescriptor:
    """A descriptor that is closed when another program is executed.

    Attributes:
        number: Number of the descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        """Move a descriptor.

        Raises:
            OSError: There are too many open descriptors. The given one is then closed.
        """
        try:
            self.number = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
        finally:
            os.close(descriptor)
        self._status = os.fstat(self.number)

    @property
    def is_open(self) -> bool:
        """Whether the number still belongs to the same file. The program may have closed it, as daemons do."""
        try:
            return os.path.samestat(os.fstat(self.number), self._status)
        except OSError:
            return False

    def close(self) -> None:
        """Close the descriptor if it is still open. Idempotent."""
        if self.is_open:
            with contextlib.suppress(OSError):
                os.close(self.number)
        self.number = -1
