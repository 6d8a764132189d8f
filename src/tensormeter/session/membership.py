"""Steps to join a run: find its directory, count the attempt, create the process's ring, and start an agent."""

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tensormeter.agent.attempts.counter import count_attempt
from tensormeter.agent.launch import ensure_agent
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.agent.run_directory.shared_memory import make_memory_directory, memory_directories
from tensormeter.agent.wakeup import Waker
from tensormeter.conventions.attempt_number import Basis, Member
from tensormeter.conventions.semconv import RANK, RUN_ATTEMPT_UNSETTLED, WORLD_SIZE
from tensormeter.disk.deadline import within
from tensormeter.disk.private import weakness
from tensormeter.disk.probe import answers
from tensormeter.disk.user_folders import NO_FOLDER
from tensormeter.errors import RingError
from tensormeter.logger import get_logger
from tensormeter.resource import describe_launch, describe_process, describe_rank
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import AUTOMATIC_STEPS
from tensormeter.settings import Settings

__all__ = ["Existence", "Joining", "Membership", "RunIdentity", "with_basis"]

logger: Final = get_logger()

_JOIN_TIMEOUT: Final = 3.0
"""Seconds to wait for an unresponsive state directory before memory is used instead."""

_LOCK_TIMEOUT: Final = 2.0
"""Maximum seconds to wait while other processes join. Each takes a few milliseconds."""

_MEMORY_SPOOL_BYTES: Final = 64 << 20
"""Maximum size of a spool in memory, in bytes."""

_CHILD_BUFFER_BYTES: Final = 1 << 20
"""Maximum size of a child's ring in bytes. A process may have many children, and each logs little."""


Existence = Literal["", "must", "never"]


@dataclass(frozen=True)
class RunIdentity:
    """Properties that all processes of a run share.

    Attributes:
        id: ID of the run, unique within its project.
        name: Display name of the run.
        config: Configuration of the run as JSON values.
        settings: Settings of the run.
        resource: Additional resource attributes from an OpenTelemetry program.
        resume: Whether the run had an earlier attempt, perhaps on another machine.
        existence: `must` or `never` if the process warns unless the run had an earlier attempt, or if it had one; else "".
        basis: In a child, the source of the parent's attempt number; "" if the agent does not need to check the number.
        forked_from: ID of the run from which this run was forked, and the last step of that run that belongs to it; None if
            the run was not forked.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    settings: Settings
    resource: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    existence: Existence = ""
    basis: Basis = ""
    forked_from: tuple[str, int] | None = None

    def describe(self, process: str, attempt: int) -> Mapping[str, Any]:
        """Return the OpenTelemetry resource attributes of one of the run's processes."""
        return describe_process(
            self.settings.project,
            self.id,
            self.name,
            process,
            attempt=attempt,
            given=self.resource,
            command=self.settings.record_command,
        )


@dataclass(frozen=True)
class Membership:
    """A process's membership in a run.

    Attributes:
        settings: Settings of the run, with the directory that is actually used.
        directory: Directory of the run.
        attempt: Number of the attempt, as counted in this directory, from 1.
        basis: Source of the attempt number.
        resource: Attributes of the process's resource.
        ring: Ring of the process.
        waker: Wakes the agent.
        weakness: Result of `disk.private.weakness` for the directory.
        first_step: Step of the first row logged without a step. If the run may have an earlier attempt, the agent assigns the
            actual step later.
    """

    settings: Settings
    directory: RunDirectory
    attempt: int
    basis: Basis
    resource: Mapping[str, Any]
    ring: RingFile
    waker: Waker
    weakness: str
    first_step: int = 0

    def leave(self) -> None:
        """Delete the ring of a membership that will not be used."""
        self.waker.close()
        self.ring.release()
        with contextlib.suppress(OSError):
            self.ring.remove()


class Joining:
    """Procedure for a process to join a run."""

    def __init__(self, run: RunIdentity, process: str, parent: str | None) -> None:
        """Prepare to join. Nothing changes on disk.

        Args:
            run: Run to join.
            process: ID of the process.
            parent: ID of the parent process, if it belongs to the run; else None.
        """
        self._run = run
        self._process = process
        self._parent = parent

    def join(self) -> Membership:
        """Join in `settings.directory`, or in memory if that directory is unusable or unresponsive.

        Raises:
            OSError, RingError: Neither the directory nor memory can be used.
        """
        run = self._run
        try:
            membership = self._join_in_time(run.settings)
        except OSError as error:
            membership = self._join_in_memory(error)
            homeless = run.settings.directory == NO_FOLDER
            logger.warning(
                "run %s is kept in memory (%s), because %s is unusable (%s); a reboot deletes undelivered data",
                run.id,
                membership.settings.directory,
                run.settings.directory,
                "this user has no home folder; set HOME or TENSORMETER_DIR" if homeless else error,
            )
        if self._parent is None and membership.weakness:
            logger.warning(
                "run %s: other users can replace %s (%s). `tensormeter sync` ignores the destination stored there; set "
                "TENSORMETER_DIR to a private folder",
                run.id,
                membership.directory.path,
                membership.weakness,
            )
        return membership

    def join_parent(self, parent: Membership, has_agent: Callable[[], bool]) -> Membership | None:
        """Make a forked child join its parent's directory, without reading the disk.

        The parent's agent finds every ring in shared memory.

        Args:
            parent: Membership of the parent.
            has_agent: Function that returns whether an agent is running that cannot end while the parent is recording.

        Returns:
            The child's membership, or None if the rings are not in shared memory or an agent may not be running.
        """
        if parent.directory.memory_lock is None or not has_agent():
            return None

        def join(late: threading.Event) -> Membership:
            resource = self._run.describe(self._process, parent.attempt)
            metadata = self._metadata(resource, parent.basis)
            ring = self._create_ring(parent.directory, parent.settings, metadata, [parent.directory.rings])
            return dataclasses.replace(parent, resource=resource, ring=ring)

        try:
            membership = within(_JOIN_TIMEOUT, join, Membership.leave)
        except (OSError, RingError):
            return None
        if not has_agent():  # the agent may have ended before it found the ring
            membership.leave()
            return None
        return membership

    def _join_in_time(self, settings: Settings) -> Membership:
        """Join in `settings.directory`; raise TimeoutError (an OSError) if the disk takes too long to respond."""
        if not answers(settings.directory, _JOIN_TIMEOUT):
            raise TimeoutError(f"it did not respond within {_JOIN_TIMEOUT:.0f} s")
        return within(_JOIN_TIMEOUT, lambda late: self._join(settings, late), Membership.leave)

    def _join_in_memory(self, reason: OSError) -> Membership:
        """Join in a folder in memory; raise `reason` if the directory that failed already is such a folder."""
        settings = self._run.settings

        def join(settings: Settings, late: threading.Event) -> Membership:
            if settings.directory in memory_directories(settings)[0]:
                raise reason
            spool_bytes = min(settings.spool_max_bytes, _MEMORY_SPOOL_BYTES)
            directory = make_memory_directory(settings)
            return self._join(settings.replace(directory=directory, spool_max_bytes=spool_bytes), late)

        try:
            return within(_JOIN_TIMEOUT, functools.partial(join, settings), Membership.leave)
        except TimeoutError:
            # The folder for rings may be on the unresponsive disk, too.
            for folder in (Path("/dev/shm"), None):  # noqa: S108 - the run's folder in it is private (0700)
                with contextlib.suppress(OSError):
                    elsewhere = settings.replace(buffer_directory=folder)
                    return within(_JOIN_TIMEOUT, functools.partial(join, elsewhere), Membership.leave)
            raise

    def _join(self, settings: Settings, late: threading.Event) -> Membership:
        """Join in `settings.directory`. This does not modify the object, and blocks while it accesses the disk."""
        run = self._run
        with runs_locked(settings.directory, patience=_LOCK_TIMEOUT):
            directory = RunDirectory.create(settings, run.id, run.name)
            attempt, basis = self._count_attempt(directory, settings)
            resource = run.describe(self._process, attempt)
            ring = self._create_ring(directory, settings, self._metadata(resource, basis), directory.ring_folders)
            waker = Waker(directory)
            membership = Membership(
                settings,
                directory,
                attempt,
                basis,
                resource,
                ring,
                waker,
                weakness(directory.path),
                self._first_step(attempt, basis),
            )
            if not late.is_set():
                self._start_agent(membership)
        return membership

    def _count_attempt(self, directory: RunDirectory, settings: Settings) -> tuple[int, Basis]:
        """Return the number of the attempt and its source."""
        run = self._run
        if self._parent is not None:  # children belong to their parent's attempt
            return settings.attempt or 1, run.basis
        if settings.run_id is None:  # no earlier run can have the same random ID
            return settings.attempt or 1, ""
        ranks = describe_rank()
        member = Member(self._process, ranks.get(RANK), ranks.get(WORLD_SIZE), describe_launch(os.environ))
        number, provisional = count_attempt(
            directory, settings.project, member, resume=run.resume, number=settings.attempt
        )
        if settings.attempt is not None:
            return number, "given" if run.resume or number > 1 else ""
        return number, "unknown" if provisional else "counted"

    def _first_step(self, attempt: int, basis: Basis) -> int:
        """Return the step of the first row logged without a step.

        Only the agent can find out what other machines have logged. If this may be a later attempt, it replaces the step.
        """
        if basis == "unknown" or (basis and (attempt > 1 or self._run.resume)):
            return AUTOMATIC_STEPS
        return 0 if self._run.forked_from is None else self._run.forked_from[1] + 1

    def _metadata(self, resource: Mapping[str, Any], basis: Basis) -> dict[str, Any]:
        run = self._run
        metadata: dict[str, Any] = {
            "resource": with_basis(resource, basis),
            "config": run.config,
            "parent": self._parent,
            "resume": run.resume,
        }
        if run.forked_from is not None:
            parent, step = run.forked_from
            metadata["forked_from"] = {"run": parent, "step": step}
        labels = {
            "group": run.settings.group,
            "job_type": run.settings.job_type,
            "tags": run.settings.tags,
            "notes": run.settings.notes,
        }
        return metadata | {name: value for name, value in labels.items() if value}

    def _create_ring(
        self, directory: RunDirectory, settings: Settings, metadata: Mapping[str, Any], folders: Sequence[Path]
    ) -> RingFile:
        """Create the ring in the first folder where it can be mapped, or a smaller ring if the file is too large."""
        size = settings.buffer_bytes if self._parent is None else min(settings.buffer_bytes, _CHILD_BUFFER_BYTES)
        errors: list[OSError | RingError] = []
        for buffer_bytes in dict.fromkeys([size, min(size, _CHILD_BUFFER_BYTES)]):
            for folder in folders:
                try:
                    directory.make_ring_directory(folder)
                    ring = RingFile.create(folder / f"{self._process}.ring", metadata, buffer_bytes=buffer_bytes)
                except (OSError, RingError) as error:
                    errors.append(error)
                    continue
                if errors and folder == directory.rings_on_disk:
                    logger.warning(
                        "%s; the ring buffer is on disk instead, so log calls may wait for the disk", errors[0]
                    )
                elif errors:
                    logger.warning("%s; the ring buffer is in %s instead", errors[0], folder)
                return ring
        raise errors[0]

    def _start_agent(self, membership: Membership) -> None:
        """Start an agent unless one is already running."""
        if membership.settings.agent == "off":
            return
        try:
            ensure_agent(membership.directory, membership.settings)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            logger.warning(
                "cannot start an agent for run %s (%s); deliver the run with `tensormeter sync`", self._run.id, error
            )


def with_basis(resource: Mapping[str, Any], basis: Basis) -> dict[str, Any]:
    """Add the source of the attempt number to the resource; the agent reads and removes it."""
    return {**resource, RUN_ATTEMPT_UNSETTLED: basis} if basis else dict(resource)
