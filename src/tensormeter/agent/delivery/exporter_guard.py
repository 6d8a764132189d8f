"""Calls of exporters, whose exceptions and unexpected answers become outcomes.

An exporter that raises an exception would block the queue for ever, because one item may be the cause. An outage (`outages`) is
retried without a limit. After any other exception the request is tried three times, the last time with a new exporter, and then
divided until the item that causes the exception is alone. That item is quarantined.
"""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from typing import Final

from tensormeter.agent.attempts.numbering import Numbering
from tensormeter.exporter import (
    Accepted,
    Durability,
    Exporter,
    Outcome,
    Rejected,
    Request,
    Retry,
    TooLarge,
    Unauthorized,
)
from tensormeter.logger import get_logger
from tensormeter.outages import is_outage

__all__ = ["ExporterGuard", "describe_error", "format_error"]

logger: Final = get_logger("tensormeter.agent")

_TRIES: Final = 3
"""Attempts at a request whose exporter raises, before the request is divided."""

_TRIES_OF_ITEM: Final = 2
"""Attempts at a single item of such a request, before the item is quarantined. A part with several items is divided at once."""

_LEAST: Final = 2
"""Points of a request that cannot be divided: a value and its step."""

_LONGEST_REASON: Final = 500


class ExporterGuard:
    """Calls the exporters of one destination. Used by one thread; the attributes may be read by any.

    Attributes:
        began: Time at which the present attempt began; None if none is under way.
        needs_renewal: Whether the next attempt needs a new exporter: the present one may have been left in a broken state.
    """

    def __init__(self, destination: str, numbering: Numbering | None) -> None:
        """
        Args:
            destination: Name of the destination, for messages.
            numbering: Settles the numbers of attempts before requests are exported.
        """
        self._destination = destination
        self._numbering = numbering
        self.began: float | None = None
        self.needs_renewal = False
        self._raising = ""
        """Id of the request at which the exporter last raised an exception."""
        self._raises = 0
        self._divided = ""
        """Id of the last request that was divided because the exporter raised an exception."""

    def export(self, exporter: Exporter, request: Request, *, retrying: bool) -> Outcome:
        """Make one attempt.

        Args:
            exporter: The exporter.
            request: The request, or a part of one.
            retrying: Whether the last attempt failed, so that a traceback is already in the log.
        """
        self.began = time.monotonic()
        try:
            if self._numbering is not None:
                if (retry := self._numbering.ask(exporter)) is not None:
                    return retry
                request = self._numbering.rewrite(request)
            outcome = _checked(exporter.export(request), request.items)
            if self._numbering is not None and isinstance(outcome, Accepted):
                self._numbering.accepted()
        except BaseException as error:  # libraries raise anything, `SystemExit` too; the queue must go on
            return self._outcome_of(error, request, retrying=retrying)
        finally:
            self.began = None
        self._raising = ""
        return outcome

    def ask_durability(self, exporter: Exporter) -> Durability | Retry | None:
        """Ask the receiver what is durable; None if it does not report that."""
        ask: Callable[[], Durability | Retry | None] | None = getattr(exporter, "durability", None)
        try:
            return ask() if ask is not None else None
        except Exception as error:
            logger.error("exporter %s failed\n%s", self._destination, format_error(error))
            return Retry(f"{type(error).__name__}: {error}")

    def _outcome_of(self, error: BaseException, request: Request, *, retrying: bool) -> Outcome:
        """Outcome of an attempt that raised an exception: retry, or divide the request."""
        reason = describe_error(error)
        if is_outage(error):
            logger.warning("exporter %s failed\n%s", self._destination, reason if retrying else format_error(error))
            return Retry(reason)
        if self._raising != request.id:
            self._raising, self._raises = request.id, 0
        self._raises += 1
        is_part = bool(self._divided) and request.id.startswith(f"{self._divided}.")
        if not is_part and self._raises == 1:
            logger.error("exporter %s failed at %r\n%s", self._destination, request, format_error(error))
        tries = _TRIES if not is_part else _TRIES_OF_ITEM if request.items <= _LEAST else 1
        if self._raises < tries:
            self.needs_renewal = self._raises == tries - 1
            return Retry(reason)
        if not is_part:
            self._divided = request.id
        return Rejected(f"the exporter raised {reason}", divide=True)


def describe_error(error: BaseException) -> str:
    """Type and text of an exception."""
    try:
        text = str(error)
    except Exception:  # the exception's own `__str__` is broken
        text = ""
    name = type(error).__name__
    return f"{name}: {_plain(text)}" if text else name


def format_error(error: BaseException) -> str:
    """Traceback of an exception for the log. Its text is shortened as in `describe_error`, because it may quote the data."""
    return "".join([*traceback.format_tb(error.__traceback__), describe_error(error)])


def _checked(outcome: object, items: int) -> Outcome:
    """Return an outcome with fields of the right types, converted as far as possible.

    Raises:
        TypeError, ValueError: The exporter returned something else.
    """
    match outcome:
        case Accepted():
            rejected = min(max(int(outcome.rejected), 0), items)
            return dataclasses.replace(outcome, rejected=rejected, message=_plain(outcome.message))
        case Retry():
            after = None if outcome.after is None else float(outcome.after)
            return dataclasses.replace(
                outcome, reason=_plain(outcome.reason), after=after if after and math.isfinite(after) else None
            )
        case Rejected() | TooLarge() | Unauthorized():
            return dataclasses.replace(outcome, reason=_plain(outcome.reason))
    raise TypeError(f"expected an Outcome from the exporter, got {type(outcome).__name__}")


def _plain(text: object) -> str:
    """Return a text that every file and database can store, shortened: it may quote the data."""
    plain = str(text).encode(errors="replace").decode()
    return plain if len(plain) <= _LONGEST_REASON else f"{plain[:_LONGEST_REASON]}..."
