"""Counts of what an import has read, sent and left out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Tally"]

_MOST_FAULTS: Final = 1000
_MOST_KINDS: Final = 1000
_LONGEST: Final = 500


@dataclass
class Tally:
    """Counts of an import. Not thread-safe.

    Attributes:
        runs: Number of runs.
        projects: Names of their projects as keys, in order of first appearance.
        points: Number of points of metrics and histograms, without steps.
        media: Number of media items: images, tables, texts and others.
        logs: Number of log lines.
        left_out: Number of items that were not kept, by kind.
        faults: Descriptions of what could not be read or stored. At most 1,000 are kept.
    """

    runs: int = 0
    projects: dict[str, None] = field(default_factory=dict)
    points: int = 0
    media: int = 0
    logs: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def leave_out(self, kind: str, count: int = 1) -> None:
        """Count items that are not kept. `kind` is a noun phrase in the plural, such as "strings in the history"."""
        if count > 0:
            known = kind in self.left_out or len(self.left_out) < _MOST_KINDS
            self.left_out[kind[:_LONGEST] if known else "items of other kinds"] += count

    def report(self, fault: str) -> None:
        """Note that something could not be read or stored, with the file, the cause, and what was kept."""
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(fault[:_LONGEST])
