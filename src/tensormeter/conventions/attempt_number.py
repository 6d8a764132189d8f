"""The rule that assigns a run's attempt number, shared by training processes and the server.

Processes that start at the same time on machines without a shared disk get the same number. The rule depends on the
launch and on the ranks that an attempt already has, not on the order in which processes ask.
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
"""Basis of an attempt's number.

The number is `unknown` if this machine has no record of earlier attempts, and `counted` if this machine counted it. It
is `given` if the setting `attempt` sets it in a resumed run; the agent then requests only the last step of the earlier
attempts from the server. "" means that the agent has nothing to request.
"""

DOUBTFUL: Final = 120.0
"""Age in seconds from which a process on another machine counts as dead when the run is resumed.

The age counts from the start of the process. Older processes count as dead even if they seem alive, because a machine
that lost power or a pod that was killed reports nothing.
"""

_GATHERING: Final = 600.0
"""Seconds after a rank's start during which missing ranks join its attempt, even if that rank has ended."""


@dataclass(frozen=True)
class Member:
    """A process of an attempt.

    Attributes:
        process: Globally unique ID of the process.
        rank: Rank, if the launcher assigns one.
        world_size: Number of ranks in the launch, if known.
        launch: ID that only the ranks of this launch share; empty if the launcher sets none.
    """

    process: str
    rank: int | None = None
    world_size: int | None = None
    launch: str = ""


@dataclass(frozen=True)
class KnownMember(Member):
    """A process that already has an attempt number.

    Attributes:
        attempt: Number of its attempt, starting at 1.
        alive: Whether the process is still running, as far as is known.
        age: Seconds since the process started.
    """

    attempt: int = 1
    alive: bool = False
    age: float = math.inf


def choose_attempt(member: Member, known: Iterable[KnownMember], *, resume: bool = False, least: int = 1) -> int:
    """Return the number of the attempt that a process belongs to.

    The process joins the latest attempt in these cases; otherwise, it starts a new attempt.

    - If the attempt already contains the process's rank: an earlier process of this rank is alive.
    - If the attempt does not contain the rank: a process of the attempt is alive, or has the same launch ID. If a
      launch ID is unknown, it suffices that a process of the attempt started recently and has the same world size.
    - If the process has no rank: a process of the attempt is alive.

    Args:
        member: Process that needs a number.
        known: Processes of the run that have a number.
        resume: Whether there was an earlier attempt, even if none is known.
        least: Lowest number to return, unless the process already has a number.
    """
    members = list(known)
    for peer in members:
        if peer.process == member.process:
            return peer.attempt
    if not members:
        return max(least, 2 if resume else 1)
    last = max(peer.attempt for peer in members)
    joins = _joins(member, [peer for peer in members if peer.attempt == last])
    return min(max(last if joins else last + 1, least), MAX_ATTEMPT)


def _joins(member: Member, latest: list[KnownMember]) -> bool:
    lives = any(peer.alive for peer in latest)
    launches = {peer.launch for peer in latest if peer.launch}
    if member.rank is not None:
        same_rank = [peer for peer in latest if peer.rank == member.rank]
        if same_rank:
            return any(peer.alive for peer in same_rank)
        if member.launch and launches:
            return member.launch in launches or lives
        gathering = any(peer.age < _GATHERING and peer.world_size == member.world_size for peer in latest)
        return lives or (gathering and (member.world_size or 0) > 1)
    return lives
