"""The exporter interface: the contract between delivery and a destination.

An exporter is a class that an entry point of the group `tensormeter_exporter` names. A delivery thread of the agent constructs it,
calls `export` for one request at a time, in order, and `shutdown` once at the end, all on the same thread. An exporter therefore
needs no locks.

One instance gets metrics and logs in the order in which they were recorded. An exporter that does not need this order sets
`independent_signals`: delivery then creates one instance for each signal, with its own thread, retries and position in the queue. So
a receiver that refuses one signal still gets the other.

An exporter may block for the configured timeout, and not longer. It neither retries nor sleeps: it returns an outcome, and delivery
acts on it (backoff, `Retry-After`, order, the spool).

A receiver may accept a request before it is durable, that is, before it would survive a power failure there. Then `Accepted` has a
`durability`, and the exporter has a method `durability()`, which asks the receiver. Delivery keeps such a request in the spool until it
is durable, and resends it under the same id if the receiver's epoch changes. Without this, a request leaves the spool when it is
accepted.

Outcomes are values, not exceptions. An exporter that cannot write some items writes the others, and returns `Accepted` with the number
of refused items in `rejected`. If `export` raises, nothing of the request should remain. An outage (`outages.is_outage`: network, disk,
a missing package) is treated as `Retry`. After any other exception, delivery tries the request three times, the last time with a new
exporter. It then treats the exception as `Rejected` with `divide`: it splits the request and quarantines the item that causes the
exception.
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
from tensormeter.errors import SettingsError

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
    """The configuration of an exporter.

    Attributes:
        endpoint: Base URL of the destination, without the signal's path.
        token: Bearer token, or None. Never shown in a `repr`.
        timeout: Maximum seconds of one `export`.
        destination: Name in the settings: the entry point, and after a colon a label for several destinations of a kind.
        options: Options of this destination in the settings.
        state: Folder for state that the exporter needs while requests may be retried, or None. It need not exist yet, and is deleted
            when the run is delivered.
        signals: Signals that this instance gets: both, or one if the exporter has `independent_signals`.
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
        """The label after the colon in the destination's name, or ""."""
        return self.destination.partition(":")[2]

    def options_or(self, **defaults: str) -> dict[str, str]:
        """Return all options of an exporter, with their values in the settings or their defaults.

        Raises:
            SettingsError: The settings have an option that the exporter does not have.
        """
        unknown = sorted(self.options.keys() - defaults.keys())
        if unknown:
            known = ", ".join(defaults) or "none"
            raise SettingsError(f"{self.destination}: expected options {known}, got {', '.join(unknown)}")
        return defaults | dict(self.options)


@dataclass(frozen=True)
class Request:
    """An OTLP export request, as it is in the spool.

    Attributes:
        id: Id that is unique in the world and stable over retries and restarts, for deduplication by the receiver.
        signal: Signal of the request.
        body: Protobuf message `ExportMetricsServiceRequest` or `ExportLogsServiceRequest`, gzip-compressed.
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
    """The progress of a receiver's disk.

    Attributes:
        epoch: Non-empty id of the period since the receiver's start. Numbers of different epochs cannot be compared; requests that
            were not durable in an earlier epoch may be lost.
        number: Number of the accepted request in the epoch, increasing from request to request.
        durable: Number up to which all requests survive a power failure at the receiver.
    """

    epoch: str
    number: int
    durable: int


@dataclass(frozen=True)
class Accepted:
    """The receiver has accepted the request.

    Attributes:
        rejected: Number of items that the receiver refused (OTLP's partial success). They are never sent again.
        message: The receiver's message about them.
        durability: Progress of the receiver's disk; None if the receiver does not report it.
    """

    rejected: int = 0
    message: str = ""
    durability: Durability | None = None


@dataclass(frozen=True)
class Retry:
    """The receiver cannot accept the request now; delivery retries it.

    Attributes:
        reason: Reason, for people.
        after: Seconds that the receiver asks to wait, or None.
    """

    reason: str
    after: float | None = None


@dataclass(frozen=True)
class Rejected:
    """The receiver will never accept the request; a retry is pointless.

    Attributes:
        reason: Reason, for people.
        divide: Whether a part of the request may be accepted. Delivery then divides the request until the refused items are alone,
            and sets these aside. The parts have ids that are the same at every attempt. If a single row is divided, each part has
            its step, unless the exporter has `independent_signals`.
    """

    reason: str
    divide: bool = False


@dataclass(frozen=True)
class TooLarge:
    """The request is too large; the receiver may accept it in parts.

    Delivery sends the halves, with ids that are the same at every attempt. A single point that is too large is treated as
    `Rejected`.

    Attributes:
        reason: Reason, for people.
    """

    reason: str


@dataclass(frozen=True)
class Unauthorized:
    """The receiver refuses the token. Delivery pauses until the token changes.

    Attributes:
        reason: Reason, for people.
    """

    reason: str


@dataclass(frozen=True)
class AttemptQuestion:
    """The question to which attempt of a run a process belongs.

    Attributes:
        project: The run's project.
        run_id: The run's id.
        member: The process.
        number: Number of the attempt, if it is known and only the last step is needed.
        least: Lowest valid number.
        resume: Whether there was an earlier attempt.
    """

    project: str
    run_id: str
    member: Member
    number: int | None
    least: int
    resume: bool


@dataclass(frozen=True)
class AttemptNumber:
    """The answer to an `AttemptQuestion`.

    Attributes:
        number: Number of the attempt, from 1.
        last_step: Highest step that earlier attempts have logged; None if there is none.
    """

    number: int
    last_step: int | None


Outcome = Accepted | Retry | Rejected | TooLarge | Unauthorized


class Exporter(Protocol):
    """A destination. The docstring of this module describes the calls and their thread.

    A class may have the attribute `independent_signals = True`; see there.

    It may have a method ``durability(self) -> Durability | Retry | None``, which asks for the progress of the receiver's disk, within
    the configured timeout; the receiver should sync at once. None if the receiver does not report it any more. Delivery calls it if
    nothing is to be sent and an accepted request is not durable yet.

    If its receiver assigns attempt numbers, it may have a method
    ``ask_attempt(self, question: AttemptQuestion) -> AttemptNumber | Retry | Unauthorized | None``, which delivery calls before it
    exports anything of the attempt, with the same timeout. None if this receiver assigns no numbers. `Retry` blocks the destination.
    After `Unauthorized`, `export` decides: if it is accepted, this receiver assigns no numbers.
    """

    def __init__(self, config: ExporterConfig) -> None: ...

    def export(self, request: Request) -> Outcome:
        """Send one request within the configured timeout, and return the outcome."""
        ...

    def shutdown(self) -> None:
        """Release connections. Called once; must not block."""
        ...


def load_exporter(destination: str) -> type[Exporter]:
    """Import the exporter of a destination by its entry-point name (the part before a colon).

    If a package is missing, the constructor of the returned class raises.

    Raises:
        SettingsError: There is no such exporter; the message lists the existing ones.
    """
    check_exporters([destination])
    kind = destination.partition(":")[0]
    (entry,) = entry_points(group=_GROUP, name=kind)
    try:
        with importing_sdk():
            return entry.load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        return _unavailable(f"{kind} needs the package {error.name!r}; pip install 'tensormeter[{kind}]'")
    except (Exception, SystemExit) as error:  # an imported package may raise at its environment
        return _unavailable(f"{kind} cannot be imported ({type(error).__name__}: {error}); see {entry.value}")


def _unavailable(reason: str) -> type[Exporter]:
    """Return an exporter whose constructor raises, which blocks only this destination."""

    class Unavailable:
        def __init__(self, config: ExporterConfig) -> None:
            raise SettingsError(reason)

        def export(self, request: Request) -> Outcome:
            raise NotImplementedError

        def shutdown(self) -> None:
            raise NotImplementedError

    return Unavailable


def check_exporters(destinations: Iterable[str]) -> None:
    """Check that exporters for these destinations exist, without importing them.

    Raises:
        SettingsError: A destination has no exporter; the message lists the existing ones.
    """
    known = entry_points(group=_GROUP).names
    for destination in destinations:
        if not _DESTINATION.fullmatch(destination) or destination.partition(":")[0] not in known:
            raise SettingsError(f"exporters: expected some of {', '.join(sorted(known))}, got {destination!r}")
