"""The data that a run leaves on this machine when its agent ends: waiting, rejected and lost items, and damaged files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tensormeter.agent.ingest.damaged_rings import find_damaged_rings
from tensormeter.agent.spool.spool import Spool

__all__ = ["Leftover", "damaged_files", "describe_rejections", "look_at"]

_MOST_WORDS: Final = 3


@dataclass(frozen=True)
class Leftover:
    """Data that is left of a run.

    Attributes:
        waiting: Number of waiting items, by destination.
        losses: Number of lost items, by reason.
        unreported: Number of lost items that no command has reported yet, by reason.
        rejected: Items that receivers have rejected and the spool has quarantined: destination, reason, items.
        damaged: Files that could not be read.
    """

    waiting: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    unreported: Mapping[str, int] = field(default_factory=dict)
    rejected: Sequence[tuple[str, str, int]] = ()
    damaged: Sequence[Path] = ()

    @property
    def keeps_folder(self) -> bool:
        """Whether the run's folder stays although nothing waits."""
        return bool(self.rejected or self.damaged or self.losses.get("damaged"))


def look_at(spool: Spool, rings: Iterable[Path]) -> Leftover:
    """Read the remaining data from an open spool.

    Args:
        spool: The spool.
        rings: Folders of the run's rings.

    Raises:
        SpoolError: The spool cannot be read.
    """
    return Leftover(
        spool.waiting_items(),
        dict(spool.losses()),
        spool.unreported_losses(),
        spool.rejections(),
        damaged_files(spool.path, rings),
    )


def damaged_files(spool: Path, rings: Iterable[Path]) -> list[Path]:
    """Files of a run that were renamed because they are damaged."""
    return sorted([*spool.parent.glob(f"{spool.name}.damaged-*"), *find_damaged_rings(rings)])


def describe_rejections(rejections: Sequence[tuple[str, str, int]]) -> str:
    """Description of rejected items, for people."""
    words = [f"{destination}: {items} items of {reason}" for destination, reason, items in rejections]
    more = f"; and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
    return "; ".join(words[:_MOST_WORDS]) + more
