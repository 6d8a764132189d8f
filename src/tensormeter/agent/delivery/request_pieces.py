"""The next piece to send to a destination: a request from the spool, or a part of a divided request.

A request that is too large for its receiver is sent in halves. A request whose content the receiver refuses is divided
until each refused item is alone (`division`), and the spool quarantines those items. Kinds that are always refused are
quarantined in larger pieces (`refusals`).

A receiver identifies a resent request by its ID, so the next agent must create the same pieces as this agent. Before
the next piece is sent, the spool stores how the request was divided and which pieces are done.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tensormeter.agent.delivery.division import Division, Kind, Piece, divide, divide_off, halve, piece_of, resume
from tensormeter.agent.delivery.refusals import Refusals
from tensormeter.agent.spool.errors import SpoolFullError
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.spool.spool_queries import Head
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.exporter import Durability, Request
from tensormeter.logger import get_logger

__all__ = ["RequestPieces"]

logger: Final = get_logger("tensormeter.agent")

_LOG_INTERVAL: Final = 60.0
"""Minimum seconds between two log lines about refused items."""

_MOST_NAMES: Final = 3
_UNREADABLE: Final = "an unreadable body"


class RequestPieces:
    """The pieces of the oldest request for one destination. Only one thread may use it. Methods block on the disk.

    Attributes:
        position: Sequence number of the first waiting request, as found by the last `next`; None if no request waits.
    """

    def __init__(self, destination: str, signals: Sequence[Signal] = SIGNALS) -> None:
        """
        Args:
            destination: Name of the destination in the settings.
            signals: Signals of the requests to send.
        """
        self._destination = destination
        self._signals = tuple(signals)
        # Destinations with one queue per signal receive OTLP, and their receivers join steps and values themselves.
        self._keeps_steps = self._signals == SIGNALS
        self.position: int | None = None
        self._head: Head | None = None
        """Request whose pieces are in `_parts`."""
        self._whole: Request | None = None
        self._parts: list[Request] = []
        """Pieces that are still to be sent."""
        self._pieces: dict[str, Piece] = {}
        """Contents of a divided request's parts, by ID."""
        self._rests: dict[str, str] = {}
        """ID of the piece that is quarantined together with a split-off item, by the item's ID."""
        self._refusals = Refusals()
        self._retrying = ""
        """ID of the request that is being sent, if `tensormeter spool retry` put it back; otherwise empty."""
        self._is_stored = True
        """Whether the disk had room for the current request's progress."""
        self._floor = 0
        """Sequence number up to which no request with these signals is waiting."""
        self._log_at = 0.0
        self._unlogged: Counter[str] = Counter()
        self._reset()

    def _reset(self) -> None:
        """Forget how the current request was divided and which of its pieces are done."""
        self._pieces, self._rests = {}, {}
        self._divisions: dict[str, Division] = {}
        """Division of each divided part, by ID."""
        self._done: list[str] = []
        """IDs of the pieces that were accepted or quarantined."""
        self._aside: list[str] = []
        """IDs of the quarantined pieces, which are not resent if the receiver has lost the accepted ones."""
        self._commit: Durability | None = None
        """Durability reported with the last accepted piece. Its `durable` field is not used."""
        self._refused = 0
        """Number of refused items in the current request."""
        self._credit = 0
        """Number of refused items that were already counted, in this or an earlier attempt to send the request."""

    def next(self, spool: Spool) -> Request | None:
        """Return the piece to send.

        The piece stays the same until it is `accepted`, `rejected` or `halved`, or its request leaves the spool.
        """
        head = self._find_head(spool)
        if not self._parts or head != self._head:
            self._head, self._whole, self._parts = None, None, []
            while head is not None:
                self._take(spool, head)
                if self._parts:
                    break
                head = self._find_head(spool)  # the request was damaged
        return self._parts[0] if self._parts else None

    def accepted(self, spool: Spool, refused: int, durability: Durability | None = None) -> None:
        """Record that the receiver accepted the piece.

        Args:
            spool: Spool that contains the request.
            refused: Number of items that the receiver refused.
            durability: State of the receiver's disk; None if the receiver does not report it.
        """
        part = self._parts[0]
        if part.id in self._pieces or self._refusals.doubts:
            piece = self._read(part)
            self._refusals.accepted(piece.items if piece else ())
        self._pieces.pop(part.id, None)
        self._rests.pop(part.id, None)
        if len(self._done) > len(self._aside) and _epoch(self._commit) != _epoch(durability):
            # The receiver may have lost the earlier parts.
            spool.settle(self._destination, durability, self._signals)
            self._start_again(spool)
            return
        self._commit = durability
        self._refused += refused
        counted = max(0, self._refused - self._credit)
        if len(self._parts) > 1:
            self._finish_part(spool, counted)
        else:
            self._credit += counted
            self._finish_request(spool, counted, answered=True)

    def keeps(self, spool: Spool) -> bool:
        """Return whether the receiver has accepted requests that are not known to be durable."""
        return spool.keeps(self._destination, self._signals)

    def settle(self, spool: Spool, durability: Durability | None) -> bool:
        """Process the durability that the receiver reports.

        Args:
            spool: Spool that contains the requests.
            durability: State of the receiver's disk; None if the receiver no longer reports it.

        Returns:
            Whether accepted requests are waiting again, because the receiver may have lost them.
        """
        recalled = spool.settle(self._destination, durability, self._signals)
        if recalled:
            self._start_again(spool)
        return recalled

    def rejected(self, spool: Spool, reason: str, *, divide: bool = False) -> None:
        """Quarantine a piece that the receiver will never accept, or divide it.

        Args:
            spool: Spool that contains the request.
            reason: Reason that the receiver gave.
            divide: Whether the receiver may accept parts of the piece. If so, only single items are quarantined.
        """
        part = self._parts[0]
        if divide and (pieces := self._divide(spool, part, reason)):
            self._pieces |= {piece.request.id: piece for piece in pieces}
            self._parts[:1] = [piece.request for piece in pieces]
            return
        rest = self._rests.pop(part.id, None)
        self._quarantine(spool, reason, counts=divide)
        if self._parts and self._parts[0].id == rest:
            self._quarantine(spool, reason, counts=divide)

    def halved(self, spool: Spool, reason: str) -> None:
        """Replace the piece, which is too large for its receiver, with its halves."""
        part = self._parts[0]
        try:
            pieces = halve(piece_of(part, keeps_steps=self._keeps_steps))
        except Exception as error:  # a damaged body must not block the queue
            self.rejected(spool, f"{reason}; the request cannot be split ({error})")
            return
        if pieces is None:
            self.rejected(spool, f"{reason}, even for a single item")
            return
        logger.info("%s: %s; splitting %r into halves", self._destination, reason, part)
        self._note_division(spool, part, Division())
        self._parts[:1] = [piece.request for piece in pieces]

    def _find_head(self, spool: Spool) -> Head | None:
        # Read the last number before the query, because requests that are stored later have higher numbers.
        newest = spool.last_sequence() if self._signals != SIGNALS else 0
        head = spool.head(self._destination, self._signals, after=self._floor)
        if head is None:
            self._floor = max(self._floor, newest)
        self.position = None if head is None else head.sequence
        return head

    def _take(self, spool: Spool, head: Head) -> None:
        """Create the pieces of a request. A damaged request leaves the spool and has no pieces."""
        request = spool.read(head.sequence)
        if request is None:
            return
        self._reset()
        if head.retried and self._retrying != head.id:  # a user asked for a retry, so all kinds are tried again
            self._refusals = Refusals()
            self._retrying = head.id
        self._restore(request.id, spool.sent_before(self._destination, head.sequence))
        self._head, self._whole = head, request
        self._parts = self._left_of(request)

    def _left_of(self, request: Request) -> list[Request]:
        """Return the pieces of a request that are not done, or else the whole request."""
        if not self._divisions:
            return [request]
        try:
            pieces = resume(piece_of(request, keeps_steps=self._keeps_steps), self._done, self._divisions)
        except Exception as error:  # the receiver decides whether to accept the whole request
            logger.warning(
                "%s: cannot split %r as before (%s); sending the whole request", self._destination, request, error
            )
            return [request]
        self._pieces = {piece.request.id: piece for piece in pieces}
        return [piece.request for piece in pieces] or [request]

    def _divide(self, spool: Spool, part: Request, reason: str) -> list[Piece] | None:
        """Divide a refused piece into smaller ones; return None to quarantine the piece as it is."""
        piece = self._read(part)
        if piece is None:
            return None
        advice = self._refusals.advice(piece.items.keys())
        if advice == "quarantine":
            return None
        try:
            off = (
                divide_off(piece, next(iter(piece.items))) if advice == "try one" and part.signal == "metrics" else None
            )
            parts = off or divide(piece, self._refusals.suspects, reason)
        except Exception as error:  # a damaged body must not block the queue
            logger.warning("%s: cannot split %r (%s); it was quarantined", self._destination, part, error)
            return None
        if parts is None:
            return None
        pieces, division = parts
        self._note_division(spool, part, division)
        if off is not None:
            self._rests[pieces[0].request.id] = pieces[1].request.id
        self._pieces.pop(part.id, None)
        return pieces

    def _note_division(self, spool: Spool, part: Request, division: Division) -> None:
        self._divisions[part.id] = division
        self._save(spool)

    def _quarantine(self, spool: Spool, reason: str, *, counts: bool) -> None:
        """Quarantine the next part. If `counts` is true, record its kinds as refused."""
        part = self._parts[0]
        piece = self._read(part)
        self._pieces.pop(part.id, None)
        if piece and counts:
            self._refusals.refused(piece.items)
        items = {str(kind): count for kind, count in piece.items.items()} if piece else {_UNREADABLE: part.items}
        self._report(items, reason)
        reason = f"{_list(list(items))}: {reason}"
        if part is self._whole:
            assert self._head is not None
            spool.quarantine(self._destination, self._head.sequence, reason)
            self._parts = []
            self._forget_request()
            return
        spool.quarantine_part(self._destination, part, reason)
        self._aside.append(part.id)
        if len(self._parts) > 1:
            self._finish_part(spool)
        else:
            self._finish_request(spool)

    def _read(self, part: Request) -> Piece | None:
        """Return the contents of a part; None if its body cannot be read."""
        if part.id not in self._pieces:
            try:
                self._pieces[part.id] = piece_of(part, keeps_steps=self._keeps_steps)
            except Exception:  # protobuf may raise anything for a damaged body
                return None
        return self._pieces[part.id]

    def _report(self, items: Mapping[str, int], reason: str) -> None:
        """Log the quarantined items, at most once per minute."""
        self._unlogged.update(items)
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LOG_INTERVAL
            logger.error(
                "%s refused %d items of %s; they are quarantined in the spool: %s",
                self._destination,
                self._unlogged.total(),
                _list(list(self._unlogged)),
                reason,
            )
            self._unlogged.clear()

    def _finish_part(self, spool: Spool, refused: int = 0) -> None:
        self._done.append(self._parts.pop(0).id)
        self._save(spool, refused)

    def _finish_request(self, spool: Spool, refused: int = 0, *, answered: bool = False) -> None:
        """Mark the request as done. `answered` means that its last part was accepted, so `_commit` is up to date."""
        assert self._head is not None
        recalled = spool.done(
            self._destination,
            self._head.sequence,
            refused=refused,
            durability=self._commit,
            sent=self._describe_sending(self._head),
            signals=self._signals if answered else (),
        )
        self._parts = []
        self._forget_request()
        if recalled:
            self._start_again(spool)

    def _start_again(self, spool: Spool) -> None:
        """Start again at the oldest request, because accepted requests are waiting again."""
        if self._parts and self._head is not None and self._divisions:
            self._store(spool, self._head, self._describe_sending(self._head))
        self._head, self._whole, self._parts = None, None, []
        self._floor = 0

    def _forget_request(self) -> None:
        """Forget the request, but keep the statistics of its refusals."""
        self._refusals.request_is_over()
        self._retrying = ""

    def _save(self, spool: Spool, refused: int = 0) -> None:
        """Store the request's divisions and finished pieces for the next agent, and count refused items."""
        assert self._head is not None
        progress = {
            "delivered": self._done,
            "credit": self._credit + refused,
            "commit": None if self._commit is None else [self._commit.epoch, self._commit.number],
        }
        if self._store(spool, self._head, self._describe_sending(self._head, progress), refused):
            self._credit += refused

    def _store(self, spool: Spool, head: Head, sent: str, refused: int = 0) -> bool:
        """Store progress if there is room, and return whether there was. A full disk must not block delivery."""
        try:
            spool.remember(self._destination, head.sequence, sent, refused=refused)
        except SpoolFullError as error:
            if self._is_stored:
                logger.warning("%s: cannot store the progress of a split request: %s", self._destination, error)
            self._is_stored = False
        else:
            self._is_stored = True
        return self._is_stored

    def _describe_sending(self, head: Head, progress: Mapping[str, Any] | None = None) -> str:
        """Describe how the request was sent, for `_restore`. `progress` lists its finished pieces until it is done."""
        if not self._divisions and not self._refused:
            return ""
        document = {
            "members": [head.id],
            "divisions": {
                name: [[[kind.name, kind.type] for kind in division.kinds], division.off]
                for name, division in self._divisions.items()
            },
            "refused": self._refused,
            "aside": self._aside,
        }
        return json.dumps({**document, **(progress or {})})

    def _restore(self, name: str, sent: str | None) -> None:
        """Restore the state in `sent`, so that pieces keep the IDs that the receiver may have accepted before."""
        if not sent:
            return
        try:
            document: Any = json.loads(sent)
            refused, aside = int(document["refused"]), [str(item) for item in document["aside"]]
            divisions = {
                str(part): Division(tuple(Kind(*map(str, kind)) for kind in kinds), bool(off))
                for part, (kinds, off) in document["divisions"].items()
            }
            is_same = document["members"] == [name]
            done = [str(item) for item in document.get("delivered", aside)]
            credit = int(document.get("credit", refused))
            commit = document.get("commit")
            durability = Durability(str(commit[0]), int(commit[1]), 0) if commit else None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return
        self._credit = credit
        if is_same:
            self._divisions, self._aside, self._done, self._commit = divisions, aside, done, durability
            if "delivered" in document:
                self._refused = refused


def _epoch(durability: Durability | None) -> str:
    return "" if durability is None else durability.epoch


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
