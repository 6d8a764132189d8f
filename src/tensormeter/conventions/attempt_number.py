"""The number of an attempt at a run: the rule that trainers and the server share.

Processes that begin at once on machines that share nothing get the same number, in whatever order they ask: the rule looks at which
launch and which ranks an attempt has already, and not at who asked first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "DOUBTFUL",
    "MAX_ATTEMPT",
    "Basis",
    "KnownMember",
    "Member",
    "choose_attempt",
]

MAX_ATTEMPT: Final = 1 << 31

Basis = Literal["", "unknown", "counted", "given"]
"""Where the number of an attempt comes from: this machine knows of no earlier attempt (`unknown`), has `counted` it, or was `given` it
(by a scheduler), and only the first step is open. "": there is nothing to settle.
"""

DOUBTFUL: Final = 120.0
"""Seconds from its beginning on after which a process elsewhere that seems to live may be gone, if another one resumes the run: a machine
that lost its power, or a pod that was killed as a whole, has not told anyone.
"""

_GATHERING: Final = 600.0
"""Seconds within which the ranks of one launch begin, if all that began before have ended already."""


@dataclass(frozen=True)
class Member:
    """A process of an attempt.

    Attributes:
        process: Its id, unique in the world.
        rank: Its rank, if its launcher gave it one.
        world_size: Number of ranks of its launch, if known.
        launch: What the ranks of one launch have in common, and no other launch; "" if the launcher names nothing.
    """

    process: str
    rank: int | None = None
    world_size: int | None = None
    launch: str = ""


@dataclass(frozen=True)
class KnownMember(Member):
    """A process that has a number already.

    Attributes:
        attempt: The number, from 1.
        alive: Whether it still runs, as far as is known.
        age: Seconds since it began.
    """

    attempt: int = 1
    alive: bool = False
    age: float = math.inf


def choose_attempt(member: Member, known: Iterable[KnownMember], *, resume: bool = False, least: int = 1) -> int:
    """The number of the attempt that a process belongs to.

    A process joins the latest attempt if it is of the same launch, if its rank is still missing there, or if a process of it lives.
    A rank that comes again after its process has ended begins another attempt.

    Args:
        member: The process.
        known: Processes of the run that have a number.
        resume: Whether there was an attempt before, even if none is known.
        least: The lowest number to return, unless the process has a number already.
    """
    members = list(known)
    for one in members:
        if one.process == member.process:
            return one.attempt
    if not members:
        return max(least, 2 if resume else 1)
    last = max(one.attempt for one in members)
    joins = _joins(member, [one for one in members if one.attempt == last])
    return min(max(last if joins else last + 1, least), MAX_ATTEMPT)


def _joins(member: Member, latest: list[KnownMember]) -> bool:
    lives = any(one.alive for one in latest)
    launches = {one.launch for one in latest if one.launch}
    if member.rank is not None:
        same_rank = [one for one in latest if one.rank == member.rank]
        if same_rank:
            return any(one.alive for one in same_rank)
        if member.launch and launches:
            return member.launch in launches or lives
        gathering = any(one.age < _GATHERING and one.world_size == member.world_size for one in latest)
        return lives or (gathering and (member.world_size or 0) > 1)
    return lives
