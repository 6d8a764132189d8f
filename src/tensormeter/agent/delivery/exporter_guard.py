"""Calls to exporters, with exceptions and unexpected results converted to outcomes.

A single item that makes an exporter raise an exception could block the queue forever. Outages (`outages`) are retried
without limit. A request that causes any other exception is tried three times in total, the last time with a new
exporter. It is then divided until the item that causes the exception is alone, and that item is quarantined.
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
"""Number of attempts, each raising an exception, after which a request is divided."""

_TRIES_OF_ITEM: Final = 2
"""Number of attempts, each raising an exception, after which a single item is quarantined.

Larger parts are divided again after one attempt.
"""

_LEAST: Final = 2
"""Maximum number of points in a request that cannot be divided: a value and its step."""

_LONGEST_REASON: Final = 500


class ExporterGuard:
    """Caller of one destination's exporters. Only one thread may call its methods; any thread may read its attributes.

    Attributes:
        began: Time at which the current attempt began; None between attempts.
        needs_renewal: Whether the next attempt needs a new exporter, because the current one may be in a broken state.
    """

    def __init__(self, destination: str, numbering: Numbering | None) -> None:
        """
        Args:
            destination: Name of the destination, for messages.
            numbering: Object that settles attempt numbers before requests are exported; None to send requests
                unchanged.
        """
        self._destination = destination
        self._numbering = numbering
        self.began: float | None = None
        self.needs_renewal = False
        self._raising = ""
        """ID of the request for which the exporter last raised an exception."""
        self._raises = 0
        self._divided = ""
        """ID of the last request that was divided because the exporter raised an exception."""

    def export(self, exporter: Exporter, request: Request, *, retrying: bool) -> Outcome:
        """Make one attempt to export a request.

        Args:
            exporter: Exporter to call.
            request: Request, or a part of one.
            retrying: Whether the last attempt failed, so that the log already contains a traceback.
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
        except BaseException as error:  # libraries may raise anything, even `SystemExit`; the queue must continue
            return self._outcome_of(error, request, retrying=retrying)
        finally:
            self.began = None
        self._raising = ""
        return outcome

    def ask_durability(self, exporter: Exporter) -> Durability | Retry | None:
        """Ask the receiver which requests are durable; return None if it does not report durability."""
        ask: Callable[[], Durability | Retry | None] | None = getattr(exporter, "durability", None)
        try:
            return ask() if ask is not None else None
        except Exception as error:
            logger.error("exporter %s failed\n%s", self._destination, format_error(error))
            return Retry(f"{type(error).__name__}: {error}")

    def _outcome_of(self, error: BaseException, request: Request, *, retrying: bool) -> Outcome:
        """Return the outcome of an attempt that raised an exception: retry the request, or divide it."""
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
    """Return the type and text of an exception."""
    try:
        text = str(error)
    except Exception:  # the exception's own `__str__` is broken
        text = ""
    name = type(error).__name__
    return f"{name}: {_plain(text)}" if text else name


def format_error(error: BaseException) -> str:
    """Return a traceback for the log. The exception's text is shortened, because it may quote the data."""
    return "".join([*traceback.format_tb(error.__traceback__), describe_error(error)])


def _checked(outcome: object, items: int) -> Outcome:
    """Return an outcome whose fields have the right types, converted if possible.

    Raises:
        TypeError, ValueError: The exporter returned something that cannot be converted.
    """
    match outcome:
        case Accepted():
            rejected = min(max(int(outcome.rejected), 0), items)
            live = None if outcome.live is None else float(outcome.live)
            return dataclasses.replace(
                outcome,
                rejected=rejected,
                message=_plain(outcome.message),
                live=live if live is not None and live > 0 else None,
            )
        case Retry():
            after = None if outcome.after is None else float(outcome.after)
            return dataclasses.replace(
                outcome, reason=_plain(outcome.reason), after=after if after and math.isfinite(after) else None
            )
        case Rejected() | TooLarge() | Unauthorized():
            return dataclasses.replace(outcome, reason=_plain(outcome.reason))
    raise TypeError(f"expected an Outcome from the exporter, got {type(outcome).__name__}")


def _plain(text: object) -> str:
    """Return text that every file and database can store. It is shortened, because it may quote the data."""
    plain = str(text).encode(errors="replace").decode()
    return plain if len(plain) <= _LONGEST_REASON else f"{plain[:_LONGEST_REASON]}..."
