"""What a run has left on this machine when its agent ends: what waits, what was set aside, what is lost and what is kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tensormeter.agent.spool.spool import Spool
from tensormeter.errors import SpoolError
from tensormeter.ring.file import is_of_another_version, is_written, media_directory

__all__ = ["Leftover", "damaged_files", "describe_rejections", "look_at", "put_ring_aside"]

_DAMAGED_RING: Final = ".damaged"
"""Ending of the name of a ring that cannot be read, and whose process is gone."""

_MOST_WORDS: Final = 3


@dataclass(frozen=True)
class Leftover:
    """What is left of a run.

    Attributes:
        waiting: Items that wait, by destination.
        losses: Items that will never arrive, by reason.
        unsaid: Those of them that no command has reported yet.
        rejected: What receivers have refused for good and the spool has set aside: destination, reason, items.
        damaged: Files that hold what could not be read.
    """

    waiting: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    unsaid: Mapping[str, int] = field(default_factory=dict)
    rejected: Sequence[tuple[str, str, int]] = ()
    damaged: Sequence[Path] = ()

    @property
    def keeps_folder(self) -> bool:
        """Whether the run's folder stays although nothing waits."""
        return bool(self.rejected or self.damaged or self.losses.get("damaged"))


def look_at(spool: Spool, rings: Iterable[Path]) -> Leftover:
    """Look at an open spool.

    Args:
        spool: The spool.
        rings: Folders in which the run's rings are.

    Raises:
        SpoolError: It cannot be read.
    """
    return Leftover(
        spool.waiting_items(),
        dict(spool.losses()),
        spool.unsaid_losses(),
        spool.rejections(),
        damaged_files(spool.path, rings),
    )


def damaged_files(spool: Path, rings: Iterable[Path]) -> list[Path]:
    """The files of a run that were moved aside because they are damaged."""
    found = [*spool.parent.glob(f"{spool.name}.damaged-*")]
    for folder in rings:
        found += folder.glob(f"*{_DAMAGED_RING}")
    return sorted(found)


def put_ring_aside(path: Path, error: Exception) -> int:
    """Rename a ring that is damaged, if its process is gone, so that no agent tries it again.

    Args:
        path: The ring.
        error: What an agent came upon.

    Returns:
        How many items are known to be lost with it; 0 if it is left where it is, because another agent may be able to read it.
    """
    transient = isinstance(error, OSError | MemoryError | SpoolError) or isinstance(error.__cause__, OSError)
    if transient or is_of_another_version(path) or is_written(path.resolve()):
        return 0
    try:
        pieces = len(list(media_directory(path).iterdir()))
    except OSError:
        pieces = 0
    try:
        path.rename(path.with_name(f"{path.name}{_DAMAGED_RING}"))
    except OSError:
        return 0
    return 1 + pieces


def describe_rejections(rejections: Sequence[tuple[str, str, int]]) -> str:
    """What was set aside, for people."""
    words = [f"{destination}: {items} items of {reason}" for destination, reason, items in rejections]
    more = f"; and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
    return "; ".join(words[:_MOST_WORDS]) + more
