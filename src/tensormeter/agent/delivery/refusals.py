"""Record of the kinds of items that one receiver refuses, so that dividing a refused request takes few attempts."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, Literal

from tensormeter.agent.delivery.division import Kind

__all__ = ["Refusals"]

_SUSPECT: Final = 3
"""Number of consecutive quarantined pieces of the same kind after which the kind is separated from the others."""

_LOST: Final = 16
"""Number of consecutive quarantined pieces of the same kind after which only the latest item of that kind is tried.

If that item is refused too, the rest of the piece is quarantined with it.
"""

_LOST_KINDS: Final = 8
"""Number of refused kinds of a type that was never accepted, after which all kinds of that type count as refused."""

_BARREN: Final = 3
"""Number of consecutive requests in which a kind was refused, after which its pieces are quarantined undivided."""

Advice = Literal["divide", "try one", "quarantine"]


class Refusals:
    """Statistics of one receiver's refusals. Only one thread may use it."""

    def __init__(self) -> None:
        self._strikes: Counter[Kind] = Counter()
        self._barren: Counter[Kind] = Counter()
        self._taken_types: set[str] = set()
        self._refused: set[Kind] = set()

    @property
    def doubts(self) -> bool:
        """Whether any kinds are recorded as refused, so that accepted pieces must be recorded too."""
        return bool(self._strikes)

    def accepted(self, kinds: Iterable[Kind]) -> None:
        """Record that the receiver accepted a piece with these kinds."""
        for kind in kinds:
            self._strikes.pop(kind, None)
            self._barren.pop(kind, None)
            self._refused.discard(kind)
            self._taken_types.add(kind.type)

    def refused(self, kinds: Iterable[Kind]) -> None:
        """Record that a piece with these kinds was quarantined."""
        for kind in kinds:
            self._strikes[kind] += 1
            self._refused.add(kind)

    def request_is_over(self) -> None:
        """Record that the current request is done."""
        self._barren.update(self._refused)
        self._refused.clear()

    @property
    def suspects(self) -> set[Kind]:
        """Kinds that should be separated from the others."""
        return {kind for kind, strikes in self._strikes.items() if strikes >= _SUSPECT or self._is_lost(kind)}

    def advice(self, kinds: Collection[Kind]) -> Advice:
        """Return advice on a refused piece with these kinds.

        Returns:
            `quarantine` if all kinds have been refused in several consecutive requests. At growing intervals, such a
            piece is divided or tried all the same, in case the receiver has changed. `try one` if all kinds are
            probably refused, so that a single item decides. Otherwise `divide`.
        """
        barren = min((self._barren[kind] for kind in kinds), default=0)
        if barren >= _BARREN and barren & (barren - 1):
            return "quarantine"
        return "try one" if all(map(self._is_lost, kinds)) else "divide"

    def _is_lost(self, kind: Kind) -> bool:
        if self._strikes[kind] >= _LOST:
            return True
        if kind.type in self._taken_types:
            return False
        return sum(1 for other in self._strikes if other.type == kind.type) >= _LOST_KINDS
