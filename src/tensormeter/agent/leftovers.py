"""Data that a run leaves on this machine when its agent ends: waiting, rejected and lost items, and damaged files."""

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
    """Data that a run leaves on this machine.

    Attributes:
        waiting: Number of waiting items, by destination.
        losses: Number of lost items, by reason.
        unreported: Number of lost items that no command has reported yet, by reason.
        rejected: Items that receivers rejected and the spool quarantined, as (destination, reason, number of items).
        damaged: Files that could not be read.
    """

    waiting: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    unreported: Mapping[str, int] = field(default_factory=dict)
    rejected: Sequence[tuple[str, str, int]] = ()
    damaged: Sequence[Path] = ()

    @property
    def keeps_folder(self) -> bool:
        """Whether the run's folder is kept even though no items are waiting."""
        return bool(self.rejected or self.damaged or self.losses.get("damaged"))


def look_at(spool: Spool, rings: Iterable[Path]) -> Leftover:
    """Return the data that a run has left in its spool and in the files next to it.

    Args:
        spool: Open spool of the run.
        rings: Folders that contain the run's rings.

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
    """Return the files of a run that were renamed because they are damaged."""
    return sorted([*spool.parent.glob(f"{spool.name}.damaged-*"), *find_damaged_rings(rings)])


def describe_rejections(rejections: Sequence[tuple[str, str, int]]) -> str:
    """Return a description of rejected items for users."""
    words = [f"{destination}: {items} items: {reason}" for destination, reason, items in rejections]
    more = f"; and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
    return "; ".join(words[:_MOST_WORDS]) + more
