"""What one destination is sent next: requests as they lie in the spool, several joined, or one divided.

An exporter knows a request that comes again by its id, so the next agent must make the same pieces as this one. Before a joined
request goes out, its members are written to a small file in the destination's folder, and so is each piece of a divided one that
is over; the rest follows from the spool.

A request that the receiver refuses for its content is divided until what is refused stands alone (`division`); that is set aside
in the spool. What is refused throughout is set aside in larger pieces (`refusals`).
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.delivery.division import Division, Kind, Piece, divide, divide_off, halve, piece_of, resume
from tensormeter.agent.delivery.refusals import Refusals
from tensormeter.agent.spool.request import Waiting
from tensormeter.agent.spool.request_editing import divided, joined
from tensormeter.agent.spool.spool import Spool
from tensormeter.disk.atomic import write_file
from tensormeter.disk.checked_json import pack, unpack
from tensormeter.disk.private import make_directory
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.exporter import Durability, Request
from tensormeter.logger import get_logger
from tensormeter.pace import Pace

__all__ = ["RequestPieces"]

logger: Final = get_logger("tensormeter.agent")

_LOG_INTERVAL: Final = 60.0
"""Seconds between two lines in the log about what is refused."""

_MOST_NAMES: Final = 3
_UNREADABLE: Final = "a body that cannot be read"
_MOST_MEMBERS: Final = 1000
_LARGEST_JOINED: Final = 4 << 20
"""Bytes of the bodies that are joined, as they are in the spool: Collectors take 20 MiB, decompressed."""


class RequestPieces:
    """The next piece for one destination. Used by one thread; blocks for the disk.

    Attributes:
        due_in: Seconds until what waits is due, after `next` has returned None; 0 if nothing waits.
        hurry: Whether nothing waits for others to go with it. Any thread may set it.
        called_for: Sequence number up to which nothing waits for others, because what comes behind it is due. Any thread may
            set it.
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
        self._keeps_steps = (
            self._signals == SIGNALS
        )  # others get OTLP, whose receivers join steps and values by themselves
        self._state = folder / (f"outgoing-{signals[0]}.json" if len(self._signals) == 1 else "outgoing.json")
        self.due_in = 0.0
        self.hurry = False
        self.called_for = 0
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
        self._divisions: dict[str, Division] = {}
        """How parts were divided, by their ids."""
        self._rests: dict[str, str] = {}
        """Ids of items that were divided off, and of the pieces that are set aside with them."""
        self._refusals = Refusals()
        self._retrying = ""
        """Id of the request that was put back into the queue and is being sent; "" if none is."""
        self._floor = 0
        """Sequence number up to which nothing of these signals waits."""
        self._commit: Durability | None = None
        """Durability of the last part of the present request that was accepted; its `durable` is not used."""
        self._aside: list[str] = []
        """Ids of its parts that were set aside, of those that are over: they are not sent again."""
        self._refused = 0
        """Items of the present request that were refused, also when it was sent before."""
        self._credit = 0
        """How many of them were counted when it was sent before."""
        self._log_at = 0.0
        self._unlogged: Counter[str] = Counter()
        self._begun: list[str] = []
        self._delivered: list[str] = []
        self._load()

    def next(self, spool: Spool) -> Request | None:
        """What to send now: the same until it is `accepted`, `rejected` or `halved`, if it is still in the spool."""
        waiting = self._waiting(spool, _MOST_MEMBERS if self._pace.own else 1)
        self.position = waiting[0].sequence if waiting else None
        if not self._parts or waiting[: len(self._members)] != self._members:
            self._members, self._whole, self._parts = [], None, []
            while waiting and not self._parts:
                self._resume(spool, waiting)
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

    def accepted(self, spool: Spool, refused: int, durability: Durability | None = None) -> None:
        """The piece has arrived, but for `refused` items of it.

        Args:
            spool: The spool.
            refused: Items that the receiver left out.
            durability: What it says of its disk.
        """
        part = self._parts[0]
        if part.id in self._pieces or self._refusals.doubts:
            piece = self._read(part)
            self._refusals.accepted(piece.items if piece else ())
        self._pieces.pop(part.id, None)
        self._rests.pop(part.id, None)
        if len(self._delivered) > len(self._aside) and _epoch(self._commit) != _epoch(durability):
            # The receiver may have lost the parts that went before.
            spool.settle(self._destination, durability, self._signals)
            self._start_again(spool)
            return
        self._commit = durability
        self._refused += refused
        counted = max(0, self._refused - self._credit)
        self._credit += counted
        if len(self._parts) > 1:
            spool.count_loss("refused", counted)
            self._part_is_over()
        else:
            self._request_is_over(spool, counted, answered=True)

    def keeps(self, spool: Spool) -> bool:
        """Whether the receiver has accepted something that its disk is not known to have."""
        return spool.keeps(self._destination, self._signals)

    def settle(self, spool: Spool, durability: Durability | None) -> bool:
        """Act on what the receiver says of its disk when it is asked; None if it says nothing about that any more.

        Returns:
            Whether something waits again.
        """
        recalled = spool.settle(self._destination, durability, self._signals)
        if recalled:
            self._start_again(spool)
        return recalled

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
        if divide and (pieces := self._divide(part, reason)):
            self._pieces |= {piece.request.id: piece for piece in pieces}
            self._parts[:1] = [piece.request for piece in pieces]
            return
        rest = self._rests.pop(part.id, None)
        self._set_aside(spool, reason, counts=divide)
        if self._parts and self._parts[0].id == rest:
            self._set_aside(spool, reason, counts=divide)

    def _set_aside(self, spool: Spool, reason: str, *, counts: bool) -> None:
        """Set the next part aside. `counts`: whether that says something about its kinds."""
        part = self._parts[0]
        piece = self._read(part)
        self._pieces.pop(part.id, None)
        if piece and counts:
            self._refusals.refused(piece.items)
        items = {str(kind): count for kind, count in piece.items.items()} if piece else {_UNREADABLE: part.items}
        self._report(items, reason)
        reason = f"{_list(list(items))}: {reason}"
        if part is self._whole:
            spool.quarantine(self._destination, self._members[0].sequence, reason)
            self._parts = []
            self._forget_request()
            return
        spool.quarantine_part(self._destination, part, reason)
        self._aside.append(part.id)
        if len(self._parts) > 1:
            self._part_is_over()
        else:
            self._request_is_over(spool)

    def halved(self, spool: Spool, reason: str) -> None:
        """The piece is too large for its receiver: go on with its halves."""
        try:
            found = halve(piece_of(self._parts[0], keeps_steps=self._keeps_steps))
        except Exception as error:  # whatever is wrong with the body, the next one must go on its way
            self.rejected(spool, f"{reason}; and it cannot be halved ({error})")
            return
        if found is None:
            self.rejected(spool, f"{reason}, to a single item")
            return
        logger.info("%s: %s; %r is sent in halves", self._destination, reason, self._parts[0])
        self._note_division(self._parts[0], Division())
        self._parts[:1] = [piece.request for piece in found]

    def _waiting(self, spool: Spool, most: int) -> list[Waiting]:
        # Asked before it is looked for: what comes later is behind it.
        newest = spool.last_sequence() if self._signals != SIGNALS else 0
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
        if waiting[0].sequence > max(self._through, self.called_for) and not full:
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
                or first.retried
                or member.retried
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
        news = members[0].retried and self._retrying != members[0].id
        if news:  # a person has asked for it, so its parts are tried whatever was refused before
            self._refusals = Refusals()
            self._retrying = members[0].id
        if [request.id for request in requests] != self._begun or news:
            self._delivered, self._aside = [], []
            self._divisions = {}
            self._commit = None
        if news:
            self._save([request.id for request in requests])
        if len(requests) > 1 and not self._save([request.id for request in requests]):
            members, requests = members[:1], requests[:1]
        whole = requests[0]
        pieces = [whole]
        if self._pace.own:
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
        self._parts = self._left_of(pieces) if self._delivered or self._divisions else pieces

    def _left_of(self, pieces: list[Request]) -> list[Request]:
        """What is not over yet of pieces that an earlier agent has begun with; the last one at least."""
        left = []
        for request in pieces:
            if request.id in self._divisions:
                try:
                    again = resume(piece_of(request, keeps_steps=self._keeps_steps), self._delivered, self._divisions)
                except Exception as error:  # the receiver will say what it thinks of the whole
                    logger.warning("%s: %r is sent as it is: %s", self._destination, request, error)
                else:
                    self._pieces |= {piece.request.id: piece for piece in again}
                    left += [piece.request for piece in again]
                    continue
            if request.id not in self._delivered:
                left.append(request)
        return left or pieces[-1:]

    def _divide(self, part: Request, reason: str) -> list[Piece] | None:
        """Smaller pieces of a piece that was refused; None if it is to be set aside as it is."""
        piece = self._read(part)
        if piece is None:
            return None
        advice = self._refusals.advice(piece.items.keys())
        if advice == "set aside":
            return None
        try:
            off = (
                divide_off(piece, next(iter(piece.items))) if advice == "try one" and part.signal == "metrics" else None
            )
            parts = off or divide(piece, self._refusals.suspects, reason)
        except Exception as error:  # whatever is wrong with the body, the next one must go on its way
            logger.warning("%s: %r cannot be divided: %s", self._destination, part, error)
            return None
        if parts is None:
            return None
        pieces, division = parts
        if off is not None:
            self._rests[pieces[0].request.id] = pieces[1].request.id
        self._pieces.pop(part.id, None)
        self._note_division(part, division)
        return pieces

    def _note_division(self, part: Request, division: Division) -> None:
        self._divisions[part.id] = division
        self._save([member.id for member in self._members])

    def _read(self, part: Request) -> Piece | None:

        if part.id not in self._pieces:
            try:
                self._pieces[part.id] = piece_of(part, keeps_steps=self._keeps_steps)
            except Exception:  # whatever a damaged body makes of protobuf
                return None
        return self._pieces[part.id]

    def _report(self, items: Mapping[str, int], reason: str) -> None:
        """A line in the log for what is set aside, at most one a minute."""
        self._unlogged.update(items)
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LOG_INTERVAL
            logger.error(
                "%s refused %d items of %s, which are set aside in the spool: %s",
                self._destination,
                self._unlogged.total(),
                _list(list(self._unlogged)),
                reason,
            )
            self._unlogged.clear()

    def _part_is_over(self) -> None:
        self._delivered.append(self._parts.pop(0).id)
        self._save([member.id for member in self._members])

    def _request_is_over(self, spool: Spool, refused: int = 0, *, answered: bool = False) -> None:
        """`answered`: whether its last part was accepted, so that what the receiver says of its disk is new."""
        recalled = spool.done(
            self._destination,
            *(member.sequence for member in self._members),
            refused=refused,
            durability=self._commit,
            sent=self._describe_sending(),
            signals=self._signals if answered else (),
        )
        self._parts = []
        self._forget_request()
        if recalled:
            self._start_again(spool)

    def _describe_sending(self) -> str:
        """How the present request is sent, for `_resume`."""
        if len(self._members) == 1 and not self._divisions and not self._refused:
            return ""
        return json.dumps(
            {
                "members": [member.id for member in self._members],
                "divisions": self._divisions_to_json(),
                "refused": self._refused,
                "aside": self._aside,
            }
        )

    def _resume(self, spool: Spool, waiting: Sequence[Waiting]) -> None:
        """If the next request was sent before, send the same pieces again: the receiver may know their ids."""
        sent = spool.sent_before(self._destination, waiting[0].sequence)
        self._refused = self._credit = 0
        if not sent:
            return
        try:
            document: Any = json.loads(sent)
            members = [str(item) for item in document["members"]]
            divisions, refused = _divisions_from_json(document["divisions"]), int(document["refused"])
            aside = [str(item) for item in document["aside"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        self._credit = refused
        is_begun = members == self._begun and bool(self._divisions) >= bool(divisions)
        if members == [member.id for member in waiting[: len(members)]] and not is_begun:
            self._begun, self._divisions, self._commit = members, divisions, None
            self._delivered, self._aside = list(aside), aside

    def _start_again(self, spool: Spool) -> None:
        """Look for what waits from the beginning: requests that were accepted wait again."""
        if self._parts and self._divisions:
            members = [member.sequence for member in self._members]
            spool.remember(self._destination, members, self._describe_sending())
        self._members, self._whole, self._parts = [], None, []
        self._pieces, self._divisions, self._rests = {}, {}, {}
        self._delivered, self._aside, self._commit = [], [], None
        self._floor = 0
        if self._begun:
            self._save([])

    def _forget_request(self) -> None:
        """Remember only what a request has taught about the receiver."""
        self._refusals.request_is_over()
        retried, self._retrying = self._retrying, ""
        if self._divisions or retried:
            self._pieces, self._divisions, self._rests = {}, {}, {}
            self._save(self._begun)

    def _load(self) -> None:
        """What an earlier agent wrote: members that went out last, which of their pieces are over, and what was refused."""
        try:
            document: Any = unpack(self._state.read_bytes())
            begun, delivered = ([str(item) for item in document[name]] for name in ("members", "delivered"))
            divisions = _divisions_from_json(document["divisions"])
            refusals = Refusals.from_json(document["refusals"])
            commit = document.get("commit")
            durability = Durability(str(commit[0]), int(commit[1]), 0) if commit else None
            aside = [str(item) for item in document.get("aside", [])]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.warning(
                "%s: %s cannot be used (%s); what was being sent is sent again as a whole",
                self._destination,
                self._state,
                error,
            )
            return
        self._refusals, self._retrying, self._commit = refusals, str(document.get("retrying", "")), durability
        self._begun, self._delivered, self._divisions, self._aside = begun, delivered, divisions, aside

    def _save(self, members: list[str]) -> bool:
        """Whether it could be written; a disk that refuses must not hold up delivery."""
        self._begun = members
        document = {
            "members": members,
            "delivered": self._delivered,
            "divisions": self._divisions_to_json(),
            "aside": self._aside,
            "commit": None if self._commit is None else [self._commit.epoch, self._commit.number],
            "refusals": self._refusals.to_json(),
            "retrying": self._retrying,
        }
        try:
            make_directory(self._state.parent)
            write_file(self._state, pack(document))
        except OSError as error:
            logger.warning("%s: %s cannot be written: %s", self._destination, self._state, error)
            return False
        return True

    def _divisions_to_json(self) -> dict[str, Any]:
        return {
            name: [[[kind.name, kind.type] for kind in division.kinds], division.off]
            for name, division in self._divisions.items()
        }


def _divisions_from_json(document: Any) -> dict[str, Division]:
    return {
        str(name): Division(tuple(Kind(*map(str, kind)) for kind in kinds), bool(off))
        for name, (kinds, off) in document.items()
    }


def _epoch(durability: Durability | None) -> str:
    return "" if durability is None else durability.epoch


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
