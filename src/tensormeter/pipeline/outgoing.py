"""What one destination is sent next: requests as they lie in the spool, several joined, or one divided.

An exporter knows a request that comes again by its id, so the next agent must make the same pieces as this one. Before a joined
request goes out, its members are written to a small file in the destination's folder, and so is each piece of a divided one that
is over; the rest follows from the spool.

A request that the receiver refuses for its content is divided until what is refused stands alone (`division`); that is set aside
in the spool. Kinds that were refused whole in several requests are separated from the others at once, so that a receiver
that never takes them gets three requests for one, and not a bisection each time.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensormeter.exporter import Request
from tensormeter.pace import Pace
from tensormeter.pipeline.request import Waiting
from tensormeter.pipeline.spool import Spool
from tensormeter.signals import SIGNALS, Signal

if TYPE_CHECKING:
    from tensormeter.pipeline.division import Piece

__all__ = ["Outgoing"]

logger: Final = logging.getLogger("tensormeter.agent")

_KNOWN: Final = 3
"""Requests in a row in which all of a kind was refused, after which it is separated from the others."""

_MOST_SINGLES: Final = 32
"""Items refused one by one, with nothing accepted in between, after which the points of a metric are not divided further."""

_LOG_INTERVAL: Final = 60.0
"""Seconds between two lines in the log about what is refused of one kind."""

_MOST_NAMES: Final = 3
_UNREADABLE: Final = "a body that cannot be read"
_MOST_MEMBERS: Final = 1000
_LARGEST_JOINED: Final = 4 << 20
"""Bytes of the bodies that are joined, as they are in the spool: Collectors take 20 MiB, decompressed."""


class Outgoing:
    """The next piece for one destination. Used by one thread; blocks for the disk.

    Attributes:
        due_in: Seconds until what waits is due, after `next` has returned None; 0 if nothing waits.
        hurry: Whether nothing waits for others to go with it. Any thread may set it.
        position: Sequence number of the first request that waits, after `next`; None if none does.
    """

    def __init__(self, destination: str, pace: Pace, folder: Path, signals: Sequence[Signal] = SIGNALS) -> None:
        """
        Args:
            destination: As the settings name it.
            pace: Its pace.
            folder: Where its state is kept. Need not exist yet.
            signals: Signals of the requests that are looked for.
        """
        self._destination = destination
        self._pace = pace
        self._signals = tuple(signals)
        self._state = folder / (f"outgoing-{signals[0]}.json" if len(self._signals) == 1 else "outgoing.json")
        self.due_in = 0.0
        self.hurry = False
        self.position: int | None = None
        self._since: float | None = None
        self._through = 0
        """Sequence number up to which everything is due."""
        self._alone = 0
        """Sequence number up to which requests are not joined, because they were refused together."""
        self._members: list[Waiting] = []
        self._whole: Request | None = None
        self._parts: list[Request] = []
        self._pieces: dict[str, Piece] = {}
        """What is in the parts of a divided request, by their ids."""
        self._refused: Counter[str] = Counter()
        """Items of the request that were set aside, by kind."""
        self._taken: set[str] = set()
        """Kinds of which the receiver has accepted something of the request."""
        self._singles = 0
        self._floor = 0
        """Sequence number up to which nothing of these signals waits."""
        self._logged: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()
        self._begun, self._delivered, self._strikes = self._load()

    def next(self, spool: Spool) -> Request | None:
        """What to send now: the same until it is `accepted`, `rejected` or `halved`, if it is still in the spool."""
        waiting = self._waiting(spool, _MOST_MEMBERS if self._pace.own else 1)
        self.position = waiting[0].sequence if waiting else None
        if not self._parts or waiting[: len(self._members)] != self._members:
            self._members, self._whole, self._parts = [], None, []
            while waiting and not self._parts:
                members = self._choose(waiting)
                if not members:
                    return None
                self._take(spool, members)
                waiting = self._waiting(spool, len(waiting))
                self.position = waiting[0].sequence if waiting else None
        if not self._parts:
            self.due_in = 0.0
            self._since = None
            return None
        return self._parts[0]

    def accepted(self, spool: Spool, refused: int) -> None:
        """The piece has arrived, but for `refused` items of it."""
        piece = self._pieces.get(self._parts[0].id)
        if piece is not None:
            self._taken.update(piece.items)
        self._singles = 0
        if len(self._parts) > 1:
            spool.count_loss("refused", refused)
            self._part_is_over()
        else:
            self._request_is_over(spool, refused)

    def rejected(self, spool: Spool, reason: str, *, divide: bool = False) -> None:
        """The piece will never be accepted: set it aside. Of several that were joined, each is tried by itself first.

        Args:
            spool: The spool.
            reason: What the receiver said.
            divide: Whether parts of it may be accepted: then it is divided, and only a single item is set aside.
        """
        part = self._parts[0]
        if len(self._members) > 1 and part is self._whole:
            logger.warning(
                "%s rejected %d requests that were joined; each goes alone", self._destination, len(self._members)
            )
            self._alone = self._members[-1].sequence
            self._parts = []
            return
        if divide and (pieces := self._divide(part)):
            self._replace_first(pieces)
            return
        self._singles += 1
        kinds = self._kinds(part)
        self._refused.update(kinds)
        self._report(kinds, reason)
        named = f"{_names(list(kinds))}: {reason}"
        if part is self._whole:
            spool.quarantine(self._destination, self._members[0].sequence, named)
            self._parts = []
            self._judge()
            return
        spool.quarantine_part(self._destination, part, named)
        if len(self._parts) > 1:
            self._part_is_over()
        else:
            self._request_is_over(spool)

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

    def _waiting(self, spool: Spool, most: int) -> list[Waiting]:
        newest = (
            spool.newest() if self._signals != SIGNALS else 0
        )  # before it is looked for: what comes later is behind it
        waiting = spool.waiting(self._destination, most, self._signals, after=self._floor)
        if not waiting:
            self._floor = max(self._floor, newest)
        return waiting

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
        self._pieces = {}
        self._singles = 0
        self._parts = self._left_of(pieces) if self._delivered else pieces

    def _left_of(self, pieces: list[Request]) -> list[Request]:
        """What is not over yet of pieces that an earlier agent has begun with; the last one at least."""
        from tensormeter.pipeline.division import divide_again, piece_of

        left = []
        for request in pieces:
            if any(done.startswith(f"{request.id}.") for done in self._delivered):
                try:
                    again = divide_again(piece_of(request), self._delivered, self._known())
                except Exception as error:  # the receiver will say what it thinks of the whole
                    logger.warning("%s: %r is sent as it is: %s", self._destination, request, error)
                else:
                    self._pieces |= {piece.request.id: piece for piece in again}
                    left += [piece.request for piece in again]
                    continue
            if request.id not in self._delivered:
                left.append(request)
        return left or pieces[-1:]

    def _divide(self, part: Request) -> "list[Piece] | None":
        """Smaller pieces of a piece that was refused; None if it is to be set aside as it is."""
        from tensormeter.pipeline.division import divide, piece_of  # protobuf's messages: rarely needed

        try:
            piece = self._pieces.get(part.id) or piece_of(part)
            self._pieces[part.id] = piece
            if len(piece.items) == 1 and self._singles >= _MOST_SINGLES:
                return None
            known = self._known()
            if part.id.endswith(".k1") and not self._checks_known():
                return None
            return divide(piece, known)
        except Exception:  # whatever is wrong with the body, the next one must go on its way
            return None

    def _replace_first(self, pieces: "list[Piece]") -> None:
        self._pieces |= {piece.request.id: piece for piece in pieces}
        self._parts[:1] = [piece.request for piece in pieces]

    def _kinds(self, part: Request) -> "Counter[str]":
        from tensormeter.pipeline.division import piece_of

        try:
            return Counter((self._pieces.get(part.id) or piece_of(part)).items)
        except Exception:
            return Counter({_UNREADABLE: part.items})

    def _known(self) -> set[str]:
        """Kinds that the receiver is known to refuse."""
        return {kind for kind, strikes in self._strikes.items() if strikes >= _KNOWN}

    def _checks_known(self) -> bool:
        """Whether it is time to look if the receiver still refuses each of the known kinds: after 8, 16, 32, ... requests."""
        strikes = min((self._strikes[kind] for kind in self._known()), default=0)
        return strikes >= 8 and strikes & (strikes - 1) == 0

    def _report(self, kinds: "Counter[str]", reason: str) -> None:
        """A line in the log for what is set aside, at most once a minute for a kind."""
        now = time.monotonic()
        for kind, items in kinds.items():
            self._unlogged[kind] += items
            if now - self._logged.get(kind, -_LOG_INTERVAL) >= _LOG_INTERVAL:
                self._logged[kind] = now
                logger.error(
                    "%s refused %d items of %s, which are set aside in the spool: %s",
                    self._destination,
                    self._unlogged.pop(kind),
                    kind,
                    reason,
                )

    def _part_is_over(self) -> None:
        self._delivered.append(self._parts.pop(0).id)
        self._save([member.id for member in self._members])

    def _request_is_over(self, spool: Spool, refused: int = 0) -> None:
        spool.done(self._destination, *(member.sequence for member in self._members), refused=refused)
        self._parts = []
        self._judge()

    def _judge(self) -> None:
        """Remember which kinds the receiver refuses, now that a request is over."""
        strikes = {kind: count for kind, count in self._strikes.items() if kind not in self._taken}
        strikes |= {kind: strikes.get(kind, 0) + 1 for kind in self._refused if kind not in self._taken}
        self._refused.clear()
        self._taken.clear()
        self._pieces.clear()
        if strikes != self._strikes:
            self._strikes = strikes
            self._save(self._begun)

    def _load(self) -> tuple[list[str], list[str], dict[str, int]]:
        """The ids of the members that went out last, those of their pieces that are over, and how often kinds were refused."""
        try:
            document: Any = json.loads(self._state.read_text(encoding="utf-8"))
            members, delivered = ([str(item) for item in document[name]] for name in ("members", "delivered"))
            strikes = {str(kind): int(count) for kind, count in document.get("refused", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [], [], {}
        return members, delivered, strikes

    def _save(self, members: list[str]) -> bool:
        """Whether it could be written; a disk that refuses must not hold up delivery."""
        self._begun = members
        document = {"members": members, "delivered": self._delivered, "refused": self._strikes}
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._state.with_suffix(".new")
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(self._state)
        except OSError as error:
            logger.warning("%s: %s cannot be written: %s", self._destination, self._state, error)
            return False
        return True


def _names(kinds: list[str]) -> str:
    more = f" and {len(kinds) - _MOST_NAMES} more" if len(kinds) > _MOST_NAMES else ""
    return ", ".join(kinds[:_MOST_NAMES]) + more
