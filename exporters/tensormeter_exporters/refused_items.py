"""Items of one request that a destination cannot store, while it stores the others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.exporter import Accepted, Outcome, Rejected
from tensormeter.outages import is_outage

__all__ = ["RefusedItems"]

_MOST_SHOWN: Final = 3
_MANY: Final = 16
_LONGEST: Final = 300


class RefusedItems:
    """Counts what is refused, and keeps the first reasons. Used for one request.

    Attributes:
        count: How many items were refused.
    """

    def __init__(self, is_temporary: Callable[[Exception], bool] = is_outage) -> None:
        """
        Args:
            is_temporary: Whether an exception says nothing about the item, so that the request should be tried again.
        """
        self.count = 0
        self._is_temporary = is_temporary
        self._reasons: list[str] = []

    def add(self, reason: str, count: int = 1) -> None:
        """Refuse items."""
        self.count += count
        if len(self._reasons) < _MOST_SHOWN:
            self._reasons.append(reason[:_LONGEST])

    def take_back(self) -> None:
        """Undo the last `add` of one item."""
        self.count -= 1
        if self.count < len(self._reasons):
            self._reasons.pop()

    @contextmanager
    def item(self, what: str) -> Iterator[None]:
        """Refuse an item if writing it raises an exception.

        Args:
            what: The item, for people.

        Raises:
            Exception: It is temporary.
        """
        try:
            yield
        except Exception as error:
            if self._is_temporary(error):
                raise
            self.add(f"{what}: {type(error).__name__}: {error}")

    def outcome(self, stored: int) -> Outcome:
        """The outcome of the request: `Accepted` without the refused items.

        If many were refused and nothing was stored, the items are hardly the cause. Then it is `Rejected`, so that the request is kept and
        can be sent again.

        Args:
            stored: How many items were stored.
        """
        more = f"; and {self.count - len(self._reasons)} more" if self.count > len(self._reasons) else ""
        reason = "; ".join(self._reasons) + more
        if self.count >= _MANY and not stored:
            return Rejected(reason)
        return Accepted(self.count, reason if self.count else "")
