"""What one destination is sent next: requests as they lie in the spool, several joined, or one divided.

An exporter knows a request that comes again by its id, so the next agent must make the same pieces as this one. Before a joined
request goes out, its members are written to a small file in the destination's folder, and so is each delivered piece of a
divided one; the rest follows from the spool.
"""

import json
import logging
import time
from pathlib import Path
from typing import Final

from tensormeter.exporter import Request
from tensormeter.pace import Pace
from tensormeter.pipeline.request import Waiting
from tensormeter.pipeline.spool import Spool

__all__ = ["Outgoing"]

logger: Final = logging.getLogger("tensormeter.agent")

_STATE: Final = "outgoing.json"
_MOST_MEMBERS: Final = 1000
_LARGEST_JOINED: Final = 4 << 20
"""Bytes of the bodies that are joined, as they are in the spool: Collectors take 20 MiB, decompressed."""


class Outgoing:
    """The next piece for one destination. Used by one thread; blocks for the disk.

    Attributes:
        due_in: Seconds until what waits is due, after `next` has returned None; 0 if nothing waits.
        hurry: Whether nothing waits for others to go with it. Any thread may set it.
    """

    def __init__(self, destination: str, pace: Pace, folder: Path) -> None:
        """
        Args:
            destination: As the settings name it.
            pace: Its pace.
            folder: Where its state is kept. Need not exist yet.
        """
        self._destination = destination
        self._pace = pace
        self._state = folder / _STATE
        self.due_in = 0.0
        self.hurry = False
        self._since: float | None = None
        self._through = 0
        """Sequence number up to which everything is due."""
        self._alone = 0
        """Sequence number up to which requests are not joined, because they were refused together."""
        self._members: list[Waiting] = []
        self._whole: Request | None = None
        self._parts: list[Request] = []
        self._begun, self._delivered = self._load()

    def next(self, spool: Spool) -> Request | None:
        """What to send now: the same until it is `accepted`, `rejected` or `halved`, if it is still in the spool."""
        waiting = spool.waiting(self._destination, _MOST_MEMBERS if self._pace.own else 1)
        if not self._parts or waiting[: len(self._members)] != self._members:
            self._members, self._whole, self._parts = [], None, []
            while waiting and not self._parts:
                members = self._choose(waiting)
                if not members:
                    return None
                self._take(spool, members)
                waiting = spool.waiting(self._destination, len(waiting))
        if not self._parts:
            self.due_in = 0.0
            self._since = None
            return None
        return self._parts[0]

    def accepted(self, spool: Spool, refused: int) -> None:
        """The piece has arrived, but for `refused` items of it."""
        if len(self._parts) > 1:
            spool.count_loss("refused", refused)
            self._part_is_over()
        else:
            spool.done(self._destination, *(member.sequence for member in self._members), refused=refused)
            self._parts = []

    def rejected(self, spool: Spool, reason: str) -> None:
        """The piece will never be accepted: set it aside. Of several that were joined, each is tried by itself first."""
        part = self._parts[0]
        if len(self._members) > 1 and part is self._whole:
            logger.warning(
                "%s rejected %d requests that were joined; each goes alone", self._destination, len(self._members)
            )
            self._alone = self._members[-1].sequence
            self._parts = []
            return
        logger.error("%s rejected %r, which is set aside in the spool: %s", self._destination, part, reason)
        if part is self._whole:
            spool.quarantine(self._destination, self._members[0].sequence, reason)
            self._parts = []
            return
        spool.quarantine_part(self._destination, part, reason)
        if len(self._parts) > 1:
            self._part_is_over()
        else:
            spool.done(self._destination, *(member.sequence for member in self._members))
            self._parts = []

    def halved(self, spool: Spool, reason: str) -> None:
        """The piece is too large for its receiver: go on with its halves."""
        from tensormeter.pipeline.contents import halves  # protobuf's messages: rarely needed

        try:
            found = halves(self._parts[0])
        except Exception as error:  # whatever is wrong with the body, the next one must go on its way
            self.rejected(spool, f"{reason}; and it cannot be halved ({error})")
            return
        if found is None:
            self.rejected(spool, f"{reason}, to a single item")
            return
        logger.info("%s: %s; %r is sent in halves", self._destination, reason, self._parts[0])
        left = [half for half in found if half.id not in self._delivered]
        self._parts[:1] = left if left or len(self._parts) > 1 else found[-1:]

    def _choose(self, waiting: list[Waiting]) -> list[Waiting]:
        """Those that go next, together; nothing if they are not due yet."""
        if not self._pace.own:
            return waiting[:1]
        begun = waiting[: len(self._begun)]
        if begun and [member.id for member in begun] == self._begun and begun[0].sequence > self._alone:
            return begun
        now = time.monotonic()
        items = sum(member.items for member in waiting)
        full = items >= self._pace.max_export_batch_size or len(waiting) == _MOST_MEMBERS
        if waiting[0].sequence > self._through and not full:
            if self._since is None:
                self._since = now
            self.due_in = self._since + self._pace.schedule_delay - now
            if self.due_in > 0 and not self.hurry:
                return []
            self._through = waiting[-1].sequence
        self._since = None
        return waiting[: self._fitting(waiting)]

    def _fitting(self, waiting: list[Waiting]) -> int:
        """How many of the first may go together; one always goes."""
        first = waiting[0]
        items, size = first.items, first.size
        for number, member in enumerate(waiting[1:], 1):
            items, size = items + member.items, size + member.size
            if (
                first.sequence <= self._alone
                or member.signal != first.signal
                or items > self._pace.max_export_batch_size
                or size > _LARGEST_JOINED
            ):
                return number
        return len(waiting)

    def _take(self, spool: Spool, members: list[Waiting]) -> None:
        """Make pieces of them. One that is damaged leaves the spool, and nothing is taken."""
        found = [spool.read(member.sequence) for member in members]
        requests = [request for request in found if request is not None]
        if len(requests) < len(members):
            return
        if [request.id for request in requests] != self._begun:
            self._delivered = []
        if len(requests) > 1 and not self._save([request.id for request in requests]):
            members, requests = members[:1], requests[:1]
        whole = requests[0]
        pieces = [whole]
        if self._pace.own:
            from tensormeter.pipeline.contents import divided, joined

            try:
                if len(requests) > 1:
                    whole = joined(requests)
                    pieces = [whole]
                pieces = divided(whole, self._pace.max_export_batch_size)
            except Exception as error:  # the receiver will say what it thinks of them one by one
                logger.warning("%s: %r is sent as it is: %s", self._destination, whole, error)
                if len(members) > 1:
                    self._alone = members[-1].sequence
                    members = members[:1]
                    whole, pieces = requests[0], [requests[0]]
        self._members, self._whole = members, whole
        self._parts = [piece for piece in pieces if piece.id not in self._delivered] or pieces[-1:]

    def _part_is_over(self) -> None:
        self._delivered.append(self._parts.pop(0).id)
        self._save([member.id for member in self._members])

    def _load(self) -> tuple[list[str], list[str]]:
        """The ids of the members that went out last, and of the pieces of them that are delivered."""
        try:
            document = json.loads(self._state.read_text(encoding="utf-8"))
            return [str(item) for item in document["members"]], [str(item) for item in document["delivered"]]
        except (OSError, ValueError, KeyError, TypeError):
            return [], []

    def _save(self, members: list[str]) -> bool:
        """Whether it could be written; a disk that refuses must not hold up delivery."""
        self._begun = members
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._state.with_suffix(".new")
            temporary.write_text(json.dumps({"members": members, "delivered": self._delivered}), encoding="utf-8")
            temporary.replace(self._state)
        except OSError as error:
            logger.warning("%s: %s cannot be written: %s", self._destination, self._state, error)
            return False
        return True
