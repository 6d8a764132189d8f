"""Counter for items that a destination refuses while it stores the rest of the request."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.exporter import Accepted, Outcome, Rejected
from tensormeter.outages import is_outage
from tensormeter_exporters.otlp_series import RunEvent

__all__ = ["RefusedItems"]

_MOST_SHOWN: Final = 3
_MANY: Final = 16
_LONGEST: Final = 300


class RefusedItems:
    """Refused items of one request: their number and the first reasons.

    Attributes:
        count: Number of refused items.
        is_temporary: Function that returns whether an exception has a cause other than the item, such as an outage. If
            so, the whole request is retried.
    """

    def __init__(self, is_temporary: Callable[[Exception], bool] = is_outage) -> None:
        """
        Args:
            is_temporary: Initial value of the attribute `is_temporary`.
        """
        self.count = 0
        self.is_temporary = is_temporary
        self._reasons: list[str] = []
        self._more = False
        self._unsupported = 0

    def add(self, reason: str, count: int = 1, *, is_unsupported: bool = False) -> None:
        """Count items as refused, and record the reason unless it is already recorded.

        Args:
            reason: Reason for the refusal.
            count: Number of items.
            is_unsupported: Whether the destination never accepts items of this kind, so that the items are the cause.
        """
        self.count += count
        self._unsupported += count if is_unsupported else 0
        if reason[:_LONGEST] in self._reasons:
            return
        if len(self._reasons) < _MOST_SHOWN:
            self._reasons.append(reason[:_LONGEST])
        else:
            self._more = True

    def readable(self, events: Iterable[RunEvent]) -> Iterator[RunEvent]:
        """Yield readable events, and refuse the others."""
        for run_event in events:
            if run_event.error:
                self.add(run_event.error)
            else:
                yield run_event

    @contextmanager
    def item(self, what: str) -> Iterator[None]:
        """Count an item as refused if the block raises an exception that is not temporary.

        Args:
            what: Name of the item for messages.

        Raises:
            Exception: The block raised a temporary exception.
        """
        try:
            yield
        except Exception as error:
            if self.is_temporary(error):
                raise
            self.add(f"{what}: {type(error).__name__}: {error}")

    @property
    def reason(self) -> str:
        """First distinct reasons, separated by semicolons; "" if no items were refused."""
        return "; ".join(self._reasons) + ("; and more" if self._more else "")

    def outcome(self, stored: int) -> Outcome:
        """Return the outcome of the request, normally `Accepted` with the number of refused items.

        If at least 16 items were refused and none was stored, the items are unlikely to be the cause. The outcome is
        then `Rejected`, so that delivery quarantines the request and users can send it again.

        Args:
            stored: Number of stored items.
        """
        if self.count - self._unsupported >= _MANY and not stored:
            return Rejected(self.reason)
        return Accepted(self.count, self.reason)
