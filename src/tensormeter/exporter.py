"""The exporter interface: the contract between delivery and a destination.

An exporter is a class registered as an entry point in the group `tensormeter_exporter`. A delivery thread of the agent
constructs it, calls `export` for one request at a time, in order, and calls `shutdown` once at the end. All calls are
made on the same thread, so an exporter needs no locks.

A single instance receives metrics and logs in the order in which they were recorded. An exporter that does not need
this order sets `independent_signals`. Delivery then creates one instance for each signal, with its own thread, retries
and position in the queue, so a receiver that refuses one signal still receives the other.

After `Unauthorized`, delivery waits for another token in the token file, but for at most 15 minutes. An exporter that
does not use `ExporterConfig.token` sets `uses_token = False`; delivery then waits for 15 minutes.

An exporter may block for at most the configured timeout. It neither retries nor sleeps: it returns an outcome, and
delivery handles backoff, `Retry-After`, ordering and the spool.

A receiver may accept a request before it is durable, that is, before it would survive a power failure at the receiver.
In that case, `Accepted` has a `durability`, and the exporter has a method `durability()` that asks the receiver which
requests are durable. Delivery keeps such a request in the spool until it is durable. If the receiver restarts before
that (its `epoch` changes), delivery resends the request with the same ID. Any other request leaves the spool as soon as
it is accepted.

Outcomes are return values, not exceptions. An exporter that cannot write some items writes the others, and returns
`Accepted` with the number of refused items in `rejected`. If `export` raises, it should not have written any part of
the request. Delivery treats an outage (`outages.is_outage`: network, disk, a missing package) like `Retry`. After any
other exception, delivery tries the request up to three times, the last time with a new exporter. It then treats the
exception like `Rejected` with `divide`: it splits the request and quarantines the item that caused the exception.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

from tensormeter.conventions.attempt_number import Member
from tensormeter.environment.signals import SIGNALS, Signal
from tensormeter.environment.variables import importing_sdk
from tensormeter.errors import SettingsError, join_choices

__all__ = [
    "Accepted",
    "AttemptNumber",
    "AttemptQuestion",
    "Durability",
    "Exporter",
    "ExporterConfig",
    "Outcome",
    "Rejected",
    "Request",
    "Retry",
    "Signal",
    "TooLarge",
    "Unauthorized",
    "check_exporters",
    "load_exporter",
]

_GROUP: Final = "tensormeter_exporter"
_DESTINATION: Final = re.compile(r"[\w-]+(:[\w-]+)?")


@dataclass(frozen=True, kw_only=True)
class ExporterConfig:
    """Configuration of an exporter.

    Attributes:
        endpoint: Base URL of the destination, without the signal's path.
        token: Bearer token, or None. It is never shown in a `repr`.
        timeout: Maximum duration of one `export` call in seconds.
        destination: Name in the settings: the entry point, optionally followed by a colon and a label that
            distinguishes several destinations of the same kind.
        options: Options of this destination from the settings.
        state: Folder for state that must survive a restart of the agent, or None. The folder may not exist yet, and is
            deleted once the run is delivered.
        signals: Signals that this instance receives: both, or one if the exporter has `independent_signals`.
    """

    endpoint: str
    token: str | None
    timeout: float
    destination: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    state: Path | None = None
    signals: tuple[Signal, ...] = SIGNALS

    def __repr__(self) -> str:
        token = "'***'" if self.token else None
        return (
            f"ExporterConfig(endpoint={self.endpoint!r}, token={token}, timeout={self.timeout!r}, "
            f"destination={self.destination!r}, options={dict(self.options)!r}, state={self.state!r})"
        )

    @property
    def label(self) -> str:
        """Part of the destination's name after the colon, or ""."""
        return self.destination.partition(":")[2]

    def options_or(self, **defaults: str) -> dict[str, str]:
        """Return the exporter's options: the given defaults, overridden by the settings.

        Raises:
            SettingsError: The settings contain an option that the exporter does not support.
        """
        unknown = sorted(self.options.keys() - defaults.keys())
        if unknown:
            known = ", ".join(defaults) or "none"
            raise SettingsError(f"{self.destination}: unknown option {', '.join(unknown)}; available options: {known}")
        return defaults | dict(self.options)


@dataclass(frozen=True)
class Request:
    """An OTLP export request as stored in the spool.

    Attributes:
        id: Globally unique ID that stays the same across retries and restarts, so that the receiver can deduplicate.
        signal: Signal that the request contains.
        body: Gzip-compressed Protobuf message `ExportMetricsServiceRequest` or `ExportLogsServiceRequest`.
        items: Number of data points or log records.
    """

    id: str
    signal: Signal
    body: bytes
    items: int

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, signal={self.signal!r}, items={self.items}, bytes={len(self.body)})"


@dataclass(frozen=True)
class Durability:
    """A receiver's report about the durability of requests.

    Attributes:
        epoch: Non-empty ID that changes whenever the receiver restarts. Numbers from different epochs cannot be
            compared; requests that were not durable in an earlier epoch may be lost.
        number: Number of the accepted request, which increases with each request in the epoch.
        durable: Highest number up to which all requests would survive a power failure at the receiver.
    """

    epoch: str
    number: int
    durable: int


@dataclass(frozen=True)
class Accepted:
    """The receiver has accepted the request.

    Attributes:
        rejected: Number of items that the receiver refused (OTLP's partial success). They are not sent again.
        message: Receiver's message about the refused items.
        durability: Receiver's report about the durability of its requests; None if the receiver sends no such reports.
        live: Interval, in seconds, at which the receiver wants new data because the run has viewers; None if it has
            none. The agent may send data later, but not more often.
    """

    rejected: int = 0
    message: str = ""
    durability: Durability | None = None
    live: float | None = None


@dataclass(frozen=True)
class Retry:
    """The receiver cannot accept the request now; delivery will retry it.

    Attributes:
        reason: Human-readable reason.
        after: Delay that the receiver requested, in seconds, or None.
    """

    reason: str
    after: float | None = None


@dataclass(frozen=True)
class Rejected:
    """The receiver will never accept the request; a retry is pointless.

    Attributes:
        reason: Human-readable reason.
        divide: Whether the receiver may accept parts of the request. Delivery then divides the request until the
            refused items are isolated, and quarantines them. The parts get the same IDs on every retry. If a single
            row is divided, each part keeps the row's step, unless the exporter has `independent_signals`.
    """

    reason: str
    divide: bool = False


@dataclass(frozen=True)
class TooLarge:
    """The request is too large, but the receiver may accept it in parts.

    Delivery sends the request in halves, which get the same IDs on every retry. A single point that is too large is
    treated as `Rejected`.

    Attributes:
        reason: Human-readable reason.
    """

    reason: str


@dataclass(frozen=True)
class Unauthorized:
    """The receiver refused the credentials. The module's docstring describes how long delivery pauses.

    Attributes:
        reason: Human-readable reason.
    """

    reason: str


@dataclass(frozen=True)
class AttemptQuestion:
    """Request to the receiver for the number of the attempt that a process belongs to.

    Attributes:
        project: Project of the run.
        run_id: ID of the run.
        member: Identity of the process.
        number: Number of the attempt if it is already known, so that only the last step is requested; else None.
        least: Lowest valid attempt number.
        resume: Whether the process resumes a run that had an earlier attempt.
    """

    project: str
    run_id: str
    member: Member
    number: int | None
    least: int
    resume: bool


@dataclass(frozen=True)
class AttemptNumber:
    """Answer to an `AttemptQuestion`.

    Attributes:
        number: Number of the attempt, from 1.
        last_step: Highest step that earlier attempts have logged; None if they have logged none.
    """

    number: int
    last_step: int | None


Outcome = Accepted | Retry | Rejected | TooLarge | Unauthorized


class Exporter(Protocol):
    """A destination.

    The module's docstring describes the order of calls, their thread, `independent_signals` and `uses_token`.

    A class may have a method ``durability(self) -> Durability | Retry | None``, which asks the receiver to sync to disk
    immediately, and to report which requests are durable. The method may block for at most the configured timeout. It
    returns None if the receiver no longer reports durability. Delivery calls this method when there is nothing to send
    but an accepted request is not durable yet.

    If the receiver assigns attempt numbers, the class may have a method ``ask_attempt(self, question: AttemptQuestion)
    -> AttemptNumber | Retry | Unauthorized | None``. Delivery calls it, with the same timeout, before it exports any
    data of the attempt. The method returns None if the receiver does not assign numbers. If it returns `Retry`,
    delivery to the destination pauses. If it returns `Unauthorized`, delivery calls `export`. If the receiver accepts
    that request, delivery assumes that the receiver does not assign numbers.
    """

    def __init__(self, config: ExporterConfig) -> None: ...

    def export(self, request: Request) -> Outcome:
        """Send one request within the configured timeout, and return the outcome."""
        ...

    def shutdown(self) -> None:
        """Release connections. Delivery calls this once; it must not block."""
        ...


def load_exporter(destination: str) -> type[Exporter]:
    """Import the exporter class of a destination, whose entry point is the part of its name before a colon.

    If a required package is missing, the constructor of the returned class raises an error.

    Raises:
        SettingsError: No such exporter is installed; the message lists the installed ones.
    """
    check_exporters([destination])
    kind = destination.partition(":")[0]
    (entry,) = entry_points(group=_GROUP, name=kind)
    try:
        with importing_sdk():
            return entry.load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        return _unavailable(f"{kind} needs the package {error.name!r}; run pip install 'tensormeter[{kind}]'")
    except (Exception, SystemExit) as error:  # packages may raise any error, for example because of a variable
        return _unavailable(f"{kind} could not be imported ({type(error).__name__}: {error}); check {entry.value}")


def _unavailable(reason: str) -> type[Exporter]:
    """Return an exporter class whose constructor raises, so that only this destination is blocked."""

    class Unavailable:
        def __init__(self, config: ExporterConfig) -> None:
            raise SettingsError(reason)

        def export(self, request: Request) -> Outcome:
            raise NotImplementedError

        def shutdown(self) -> None:
            raise NotImplementedError

    return Unavailable


def check_exporters(destinations: Iterable[str]) -> None:
    """Check that exporters for these destinations are installed, without importing them.

    Raises:
        SettingsError: No exporter is installed for a destination; the message lists the installed ones.
    """
    known = entry_points(group=_GROUP).names
    for destination in destinations:
        if not _DESTINATION.fullmatch(destination) or destination.partition(":")[0] not in known:
            raise SettingsError(f"exporters: expected {join_choices(*sorted(known))}; got {destination!r}")
