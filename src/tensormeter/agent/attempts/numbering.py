"""Settlement of each process's attempt number and first step, before its data is delivered.

A training process takes its attempt number from the record on its machine. The agent encodes rows with that number and
marks them as unsettled (`RUN_ATTEMPT_UNSETTLED`). If a destination's receiver stores attempts, the first delivery asks
it for the number. The agent then encodes new rows with the settled number, and corrects earlier requests when they are
sent. Request IDs do not change.

If the receiver assigns no numbers, or the destination cannot ask, data is sent with this machine's number. That number
is marked as provisional if this machine has no record of the run. Settled numbers are stored with the run, so another
agent and `tensormeter sync` use the same numbers.
"""

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Mapping, MutableSequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tensormeter.agent.attempts.counter import AttemptRecord
from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.conventions.attempt_number import MAX_ATTEMPT, Member
from tensormeter.conventions.semconv import (
    LAUNCH_ID,
    RANK,
    RUN_ATTEMPT,
    RUN_ATTEMPT_PROVISIONAL,
    RUN_ATTEMPT_UNSETTLED,
    SERVICE_INSTANCE_ID,
    WORLD_SIZE,
)
from tensormeter.disk.atomic import write_file
from tensormeter.disk.private import open_file
from tensormeter.exporter import AttemptNumber, AttemptQuestion, Request, Retry, Unauthorized
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Event
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import AUTOMATIC_STEPS, AUTOMATIC_STEPS_END, HeaderWord
from tensormeter.settings import Settings

__all__ = ["Numbering", "Settled"]

logger: Final = get_logger("tensormeter.agent")

_Ask = Callable[[AttemptQuestion], AttemptNumber | Retry | Unauthorized | None]

_MARK: Final = RUN_ATTEMPT_UNSETTLED.encode()
_GZIP_LEVEL: Final = 1
_MOST_BYTES: Final = 4 << 20
_MOST_ATTEMPTS: Final = 1000
_MOST_STEPS: Final = 1 << 62
_LATEST_READY: Final = 5.0
"""Maximum seconds that delivery waits until the rows of earlier attempts are read and their last steps are known."""


@dataclass(frozen=True)
class Settled:
    """State of one attempt at the run on this host.

    Attributes:
        member: One of the attempt's processes, which represents all of them.
        basis: Basis of the number; see `tensormeter.conventions.attempt_number.Basis`.
        resume: Whether the run had an earlier attempt.
        number: Settled number; None while it is open.
        first_step: Step of the first row without an explicit step; provisional while the number is open.
        confirmed: Whether a server assigned the number.
        ended: Highest `HeaderWord.LAST_STEP` and `LAST_AUTOMATIC` of processes that ended while the number was open.
    """

    member: Member
    basis: str
    resume: bool
    number: int | None = None
    first_step: int = 0
    confirmed: bool = False
    ended: tuple[int, int] = (0, 0)

    def last_step(self, ended: tuple[int, int]) -> int | None:
        """Return the highest delivered step, given the two header words in `ended`; None if no row had a step."""
        explicit, automatic = ended
        steps = [explicit - 1] if explicit else []
        if automatic:
            steps.append(self.first_step + automatic - 1)
        return max(steps, default=None)

    def resource(self, resource: Mapping[str, Attribute]) -> dict[str, Attribute]:
        """Return the attributes to deliver for a process of the attempt."""
        settled = {name: value for name, value in resource.items() if name != RUN_ATTEMPT_UNSETTLED}
        if self.number is not None:
            settled[RUN_ATTEMPT] = self.number
        if self.basis == "unknown" and not self.confirmed:
            settled[RUN_ATTEMPT_PROVISIONAL] = True
        return settled

    def step(self, step: int) -> int:
        """Return the step to deliver for a recorded step."""
        return step - AUTOMATIC_STEPS + self.first_step if AUTOMATIC_STEPS <= step < AUTOMATIC_STEPS_END else step

    def event(self, event: Event) -> Event:
        """Return an event whose recorded step is replaced by the step to deliver."""
        step = event.attributes.get(STEP_METRIC)
        if not isinstance(step, int):
            return event
        others = {name: value for name, value in event.attributes.items() if name != STEP_METRIC}
        return replace(event, attributes=others if _is_none(step) else {**others, STEP_METRIC: self.step(step)})

    def steps(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the steps to deliver for recorded steps of shape (n,)."""
        automatic = (steps >= AUTOMATIC_STEPS) & (steps < AUTOMATIC_STEPS_END)
        return np.where(automatic, steps - AUTOMATIC_STEPS + self.first_step, steps) if automatic.any() else steps


def _is_none(step: int) -> bool:
    """Return whether an event has no step, because a resumed process sent it before its first row."""
    return step == AUTOMATIC_STEPS - 1


def _rewrite_step(record: LogRecord, settled: Settled) -> None:
    """Replace an event's recorded step with the step to deliver."""
    kept: list[KeyValue] = []
    for attribute in record.attributes:
        if attribute.key == STEP_METRIC:
            if _is_none(attribute.value.int_value):
                continue
            attribute.value.int_value = settled.step(attribute.value.int_value)
        kept.append(attribute)
    if len(kept) < len(record.attributes):
        attributes = cast("MutableSequence[KeyValue]", record.attributes)
        del attributes[:]
        attributes.extend(kept)


class Numbering:
    """Attempts at one run on this host. The main thread registers processes, and delivery threads call `ask`."""

    def __init__(self, directory: RunDirectory, settings: Settings, *, asks: bool) -> None:
        """
        Args:
            directory: Directory of the run.
            settings: Settings of the run.
            asks: Whether any destination can ask its receiver. If not, this machine's numbers are settled immediately.
        """
        self._directory = directory
        self._settings = settings
        self._asks = asks
        self._lock = threading.Lock()
        self._attempts: dict[int, Settled] = {}
        self._refused = False
        self._ready = threading.Event()
        self._failures: list[Retry] = []
        """The last answer, if the question must be asked again; otherwise empty."""
        self._load()
        if not self._open():
            self._ready.set()

    def register(self, metadata: Mapping[str, Any]) -> None:
        """Register a process whose ring was found, and hold delivery until `poll` releases it.

        Only the agent's main thread may call this.
        """
        resource = metadata.get("resource", {})
        local, basis = resource.get(RUN_ATTEMPT), resource.get(RUN_ATTEMPT_UNSETTLED)
        if not basis or not isinstance(local, int) or local in self._attempts:
            return
        member = Member(
            str(metadata.get("parent") or resource.get(SERVICE_INSTANCE_ID)),
            resource.get(RANK),
            resource.get(WORLD_SIZE),
            str(resource.get(LAUNCH_ID, "")),
        )
        self._ready.clear()
        settled = Settled(member, str(basis), bool(metadata.get("resume")), first_step=_step_after_fork(metadata))
        self._keep(local, settled)

    def poll(self, *, unread: bool) -> None:
        """Let delivery continue, unless rows of ended processes are still `unread`.

        Only the agent's main thread may call this.
        """
        if self._ready.is_set() or unread:
            return
        for local in self._open():
            first = max(self._attempts[local].first_step, self._first_step(local))
            self._keep(local, replace(self._attempts[local], first_step=first))
            if not self._asks:
                self._settle(local, None)
        self._ready.set()

    def note_end(self, ring: RingFile, resource: Mapping[str, Any]) -> None:
        """Store an ended process's last step for later attempts. All of the process's rows must have been read."""
        local = resource.get(RUN_ATTEMPT)
        if not isinstance(local, int):
            return
        ended = ring.words[HeaderWord.LAST_STEP], ring.words[HeaderWord.LAST_AUTOMATIC]
        settled = self._attempts.get(local) if RUN_ATTEMPT_UNSETTLED in resource else None
        if settled is None:
            settled = Settled(Member(""), "", resume=False, number=local, first_step=self._first_step(local))
        elif settled.number is None:
            settled = replace(settled, ended=(max(settled.ended[0], ended[0]), max(settled.ended[1], ended[1])))
            self._keep(local, settled)
        last = settled.last_step(ended)
        if last is None or self._directory.doubt:
            return
        with contextlib.suppress(OSError), self._directory.siblings_locked():
            record = AttemptRecord.read(self._directory, self._settings.project)
            record.note_step(settled.number or local, last)
            record.attempt = max(record.attempt, settled.number or local)
            record.write()

    def of(self, resource: Mapping[str, Any]) -> Settled | None:
        """Return the settled attempt of a process; None if its number is open or there is nothing to settle."""
        local = resource.get(RUN_ATTEMPT) if RUN_ATTEMPT_UNSETTLED in resource else None
        settled = self._attempts.get(local) if isinstance(local, int) else None
        return settled if settled is not None and settled.number is not None else None

    def ask(self, exporter: object) -> Retry | None:
        """Settle open numbers if the exporter can ask its receiver.

        Delivery threads call this. It blocks for up to 5 seconds until rows of earlier attempts are read, and then for
        up to the exporter's timeout for each question.

        Returns:
            `Retry` if the receiver must be asked again before requests are exported.
        """
        if not self._open():
            return None
        self._ready.wait(_LATEST_READY)
        ask = getattr(exporter, "ask_attempt", None)
        if ask is None:
            return None
        failures = self._failures
        with self._lock:
            if self._failures is not failures and self._failures:  # the delivery of another signal has just asked
                return self._failures[0]
            for local in self._open():
                answer = self._ask(ask, local)
                if isinstance(answer, Retry):
                    self._failures = [answer]
                    return answer
                if isinstance(answer, Unauthorized):
                    self._refused = True
                    return None
                self._settle(local, answer)
        return None

    def _ask(self, ask: _Ask, local: int) -> AttemptNumber | Retry | Unauthorized | None:
        """Ask for the number of an attempt.

        If another host that shares the directory got a different number for this attempt, use that number, and ask for
        the last step before it.
        """
        answer = ask(self._question(local))
        if isinstance(answer, AttemptNumber) and (first := self._settled_elsewhere(local)) not in (None, answer.number):
            return ask(replace(self._question(local), number=first))
        return answer

    def accepted(self) -> None:
        """Settle open numbers without an answer, once a receiver that refused the question accepts a request.

        Delivery threads call this.
        """
        if self._refused:
            with self._lock:
                self._refused = False
                for local in self._open():
                    self._settle(local, None)

    def rewrite(self, request: Request) -> Request:
        """Return a request with settled numbers and steps, and the same ID."""
        if not self._attempts and self._settings.run_id is None:  # all of the run's attempts have final numbers
            return request
        try:
            return self._rewritten(request)
        except Exception as error:  # the receiver decides whether to accept the body
            logger.warning("cannot settle the attempt number in %r (%s); sending the request unchanged", request, error)
            return request

    def _rewritten(self, request: Request) -> Request:
        body = gzip.decompress(request.body)
        if _MARK not in body:
            return request
        message = ExportMetricsServiceRequest() if request.signal == "metrics" else ExportLogsServiceRequest()
        message.ParseFromString(body)
        if isinstance(message, ExportMetricsServiceRequest):
            for metrics in message.resource_metrics:
                if (settled := self._rewrite_resource(metrics.resource)) is not None:
                    for scope in metrics.scope_metrics:
                        for metric in scope.metrics:
                            if metric.name == STEP_METRIC:
                                for point in metric.gauge.data_points:
                                    point.as_int = settled.step(point.as_int)
        else:
            for logs in message.resource_logs:
                if (settled := self._rewrite_resource(logs.resource)) is not None:
                    for scope_logs in logs.scope_logs:
                        for record in scope_logs.log_records:
                            _rewrite_step(record, settled)
        return replace(request, body=gzip.compress(message.SerializeToString(), _GZIP_LEVEL, mtime=0))

    def _rewrite_resource(self, resource: Resource) -> Settled | None:
        """Settle a resource's attributes, and return the attempt that settles its steps; None if already settled."""
        values = {item.key: item.value for item in resource.attributes}
        mark = values.pop(RUN_ATTEMPT_UNSETTLED, None)
        if mark is None:
            return None
        local = values[RUN_ATTEMPT].int_value if RUN_ATTEMPT in values else 1
        settled = self._attempts.get(local)
        if settled is None:
            settled = Settled(Member(""), mark.string_value, resume=False, first_step=self._first_step(local))
        kept: list[KeyValue] = [
            item
            for item in resource.attributes
            if item.key not in (RUN_ATTEMPT_UNSETTLED, RUN_ATTEMPT, RUN_ATTEMPT_PROVISIONAL)
        ]
        for name, value in settled.resource({RUN_ATTEMPT: local}).items():
            number = AnyValue(bool_value=value) if isinstance(value, bool) else AnyValue(int_value=cast("int", value))
            kept.append(KeyValue(key=name, value=number))
        attributes = cast("MutableSequence[KeyValue]", resource.attributes)
        del attributes[:]
        attributes.extend(kept)
        return settled

    def _open(self) -> list[int]:
        return sorted(local for local, settled in list(self._attempts.items()) if settled.number is None)

    def _settled_elsewhere(self, local: int) -> int | None:
        """Return the number that a server gave another host that shares this directory, or None.

        The result is also None if a scheduler set the number, or if the run is untrusted.
        """
        settled = self._attempts[local]
        if self._directory.doubt or settled.basis == "given":
            return None
        return AttemptRecord.read(self._directory, self._settings.project).settled.get(settled.member.process)

    def _question(self, local: int) -> AttemptQuestion:
        settled = self._attempts[local]
        least = local
        if settled.basis == "unknown":  # counted from an earlier attempt on this host, if there is one
            numbers = {key: attempt.number for key, attempt in self._attempts.items() if attempt.number is not None}
            before = max((earlier for earlier in numbers if earlier < local), default=None)
            least = 1 if before is None else numbers[before] + local - before
        return AttemptQuestion(
            self._settings.project,
            str(self._directory.run["run_id"]),
            settled.member,
            local if settled.basis == "given" else None,
            least,
            settled.resume,
        )

    def _settle(self, local: int, answer: AttemptNumber | None) -> None:
        settled = self._attempts[local]
        first, number = settled.first_step, local
        if answer is not None:
            number = answer.number
            first = max(first, 0 if answer.last_step is None else answer.last_step + 1)
        settled = replace(settled, number=number, first_step=first, confirmed=answer is not None)
        self._keep(local, settled)
        last = settled.last_step(settled.ended)
        if last is not None:  # later attempts that started while this one was open continue after its last step
            for later in self._open():
                if later > local and (attempt := self._attempts[later]).first_step <= last:
                    self._keep(later, replace(attempt, first_step=last + 1))
        if not self._directory.doubt:
            with contextlib.suppress(OSError), self._directory.siblings_locked():
                record = AttemptRecord.read(self._directory, self._settings.project)
                record.settle(local, number, last, confirmed=answer is not None)
                if record.attempt:
                    record.write()
        if number != local:
            logger.info(
                "this is attempt %d of the run, not %d, because other machines have started attempts", number, local
            )

    def _first_step(self, local: int) -> int:
        """Return the step after the last step of earlier attempts in this machine's record."""
        last = AttemptRecord.read(self._directory, self._settings.project).last_step(local)
        return 0 if last is None else last + 1

    def _keep(self, local: int, settled: Settled) -> None:
        self._attempts = dict(sorted({**self._attempts, local: settled}.items())[-_MOST_ATTEMPTS:])
        document = {str(number): asdict(attempt) for number, attempt in self._attempts.items()}
        try:
            write_file(self._path, json.dumps(document))
        except OSError as error:
            logger.warning(
                "cannot write %s (%s); the next agent will have to settle the attempt numbers again", self._path, error
            )

    def _load(self) -> None:
        try:
            with open(open_file(self._path, 0), "rb") as file:
                document = json.loads(file.read(_MOST_BYTES))
            attempts = {int(local): _parse(attempt) for local, attempt in document.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        self._attempts = {local: attempt for local, attempt in attempts.items() if 1 <= local <= MAX_ATTEMPT}

    @property
    def _path(self) -> Path:
        return self._directory.path / "attempts.json"


def _parse(document: Mapping[str, Any]) -> Settled:
    member = document["member"]
    number = document["number"]
    return Settled(
        Member(str(member["process"]), _integer(member["rank"]), _integer(member["world_size"]), str(member["launch"])),
        str(document["basis"]),
        bool(document["resume"]),
        None if number is None else min(max(int(number), 1), MAX_ATTEMPT),
        min(max(int(document["first_step"]), -_MOST_STEPS), _MOST_STEPS),
        bool(document["confirmed"]),
        (int(document["ended"][0]), int(document["ended"][1])),
    )


def _step_after_fork(metadata: Mapping[str, Any]) -> int:
    """Return the first step of a forked run; 0 if the run was not forked."""
    parent = metadata.get("forked_from")
    step = parent.get("step") if isinstance(parent, dict) else None
    return min(step, _MOST_STEPS) + 1 if isinstance(step, int) and step >= 0 else 0


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
