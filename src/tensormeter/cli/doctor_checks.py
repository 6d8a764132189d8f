"""What `tensormeter doctor` looks at: a list of small functions, each of which finds out one thing and says what to do."""

import gzip
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from threading import Event
from typing import Final, Literal
from uuid import uuid4

import urllib3

import tensormeter
from tensormeter.agent.run_directory.directory import RunDirectory, find_runs, list_runs
from tensormeter.agent.run_directory.shared_memory import memory_directories
from tensormeter.agent.spool.spool import Spool
from tensormeter.disk.locks import wait_for_lock
from tensormeter.disk.mounts import network_filesystem
from tensormeter.disk.private import weakness
from tensormeter.disk.probe import PATIENCE, answers
from tensormeter.errors import TensormeterError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Request, Unauthorized, load_exporter
from tensormeter.record.device.path_report import device_path_report
from tensormeter.record.rows.lane import native_writers
from tensormeter.ring.file import RingFile
from tensormeter.settings import Settings, is_loopback

__all__ = ["CHECKS", "Finding"]

_TIMEOUT: Final = 5.0
_CLOCK_TOLERANCE: Final = 5.0
_ROOM: Final = 64 << 20
"""Bytes that should be free for the rings of a node."""


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        state: `ok`, `warning` (works, but not as it should) or `failed`.
        found: What is there.
        advice: What to do about it, or "".
    """

    state: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""


Check = Callable[[Settings], Finding]


def shared_memory(settings: Settings) -> Finding:
    """Whether rings have a place in memory."""
    folder = settings.buffer_directory
    if folder is None:
        return Finding(
            "warning", "there is none: rings lie on disk, where a log call can wait for it", "mount /dev/shm"
        )
    existing = _existing(folder)
    if not os.access(existing, os.W_OK):
        return Finding("failed", f"{existing} cannot be written to", "set TENSORMETER_BUFFER_DIR to a folder that can")
    if refused := memory_directories(settings)[1]:
        return Finding(
            "warning",
            f"{refused[0][0]} is left alone, so rings may lie on disk: {refused[0][1]}",
            "remove it, ask its owner to, or set TENSORMETER_BUFFER_DIR to another folder",
        )
    free = shutil.disk_usage(existing).free
    if free < max(_ROOM, 2 * settings.buffer_bytes):
        return Finding(
            "warning",
            f"{free >> 20} MiB free in {existing}",
            "make it larger (docker run --shm-size=1g), or set TENSORMETER_BUFFER_BYTES lower",
        )
    return Finding("ok", f"{free >> 20} MiB free in {existing}")


def ring(settings: Settings) -> Finding:
    """Whether a ring of the size in the settings can be made, locked and read."""
    parent = _existing(settings.buffer_directory or Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix="tensormeter-doctor-", dir=parent) as folder:
        made = RingFile.create(Path(folder) / "doctor.ring", {"doctor": True}, buffer_bytes=settings.buffer_bytes)
        try:
            alive = made.writer_alive()
            entries = list(RingFile.open(made.path).entries())
        finally:
            made.release()
    if not alive or len(entries) != 1:
        return Finding("failed", f"a ring in {parent} does not work", "set TENSORMETER_BUFFER_DIR to another folder")
    return Finding("ok", f"{settings.buffer_bytes >> 20} MiB, reserved and locked")


def agent(settings: Settings) -> Finding:
    """Whether an agent starts, and puts a row on disk that a run has logged."""
    with tempfile.TemporaryDirectory(prefix="tensormeter-doctor-") as folder:
        run = tensormeter.init(
            "doctor",
            settings=settings.replace(
                mode="offline",
                agent="process",
                directory=Path(folder),
                run_id=None,
                finish_timeout=30.0,
                sigterm_timeout=0,
            ),
        )
        began = time.monotonic()
        run.log({"doctor": 1.0}, 0)
        run.finish()
        took = time.monotonic() - began
        for left in list_runs(Path(folder)):
            _wait_for_agent(left)  # which would put the folder back when it is deleted
        for left in list_runs(Path(folder)):
            spool = Spool(left.spool)
            try:
                items = spool.pending_items()
            finally:
                spool.close()
            if items >= 2:
                return Finding("ok", f"started, and wrote a row to disk within {took:.1f} s")
    return Finding(
        "failed",
        "it did not put a row on disk within 30 s",
        'read the agent.log of a run, see `tensormeter spool ls`; meanwhile settings={"agent": "thread"}',
    )


def spool(settings: Settings) -> Finding:
    """Whether there is a place for what is not delivered yet, and how much of that there is."""
    directory = settings.directory
    if not answers(directory, PATIENCE):
        return Finding(
            "failed",
            f"{directory} does not answer within {PATIENCE:.0f} s",
            "set TENSORMETER_DIR to a folder on another disk",
        )
    existing = _existing(directory)
    if not os.access(existing, os.W_OK):
        return Finding(
            "warning",
            f"{existing} cannot be written to: spools are kept in memory, and do not survive a reboot",
            "set TENSORMETER_DIR to a folder that can",
        )
    kind = network_filesystem(existing)
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            wait_for_lock(file.fileno())
    except OSError as error:
        return Finding(
            "warning",
            f"{existing}: files cannot be locked there ({error}): spools are kept in memory, and do not survive a reboot",
            "set TENSORMETER_DIR to a local disk",
        )
    if kind is not None:
        return Finding(
            "warning",
            f"{existing} is on {kind}: slower than a local disk",
            "set TENSORMETER_DIR to a local disk",
        )
    if weak := weakness(directory / "runs"):
        return Finding(
            "warning",
            f"other users can replace {directory}: {weak}; `tensormeter sync` ignores the settings that are stored there",
            "set TENSORMETER_DIR to a private folder",
        )
    found = [find_runs(place) for place in (directory, *memory_directories(settings)[0])]
    runs = [run for some, _ in found for run in some]
    unreadable = [str(path) for _, refused in found for path, _ in refused]
    waiting = len(runs)
    free = shutil.disk_usage(existing).free
    if free < settings.spool_max_bytes:
        return Finding(
            "warning",
            f"{free >> 20} MiB free in {existing}, less than a spool may take ({settings.spool_max_bytes >> 20} MiB)",
            "free some, or set TENSORMETER_SPOOL_MAX_BYTES lower",
        )
    if damaged := [run.path.name for run in runs if run.damage]:
        return Finding(
            "warning",
            f"{directory}: {waiting} runs wait; the run.json of {', '.join(damaged)} cannot be used",
            "deliver them with `tensormeter sync`, which uses its own settings for these",
        )
    if unreadable:
        return Finding(
            "warning",
            f"{directory}: {waiting} runs wait; {', '.join(unreadable)} cannot be looked into",
            "see `tensormeter spool ls`",
        )
    if waiting:
        return Finding("ok", f"{directory}: {waiting} runs wait", "deliver them with `tensormeter sync`")
    return Finding("ok", f"{directory}: nothing waits")


def endpoint(settings: Settings) -> Finding:
    """Whether OTLP is understood at the endpoint."""
    outcome = _probe(settings.endpoint, _token(settings))
    match outcome:
        case Accepted():
            return Finding("ok", f"{settings.endpoint} takes OTLP")
        case Unauthorized():
            return Finding("ok", f"{settings.endpoint} is there")
        case _:
            return Finding(
                "failed", outcome.reason, "start a server with `tensormeter serve`, or set TENSORMETER_ENDPOINT"
            )


def token(settings: Settings) -> Finding:
    """Whether the endpoint takes the token, and whether others can read it on its way."""
    given = settings.current_token() is not None
    outcome = _probe(settings.endpoint, _token(settings))
    if isinstance(outcome, Unauthorized):
        what = "the token is refused" if given else "a token is needed"
        return Finding("failed", what, "set TENSORMETER_TOKEN or TENSORMETER_TOKEN_FILE to a token of that server")
    if given and settings.endpoint.startswith("http:") and not is_loopback(_host(settings)):
        return Finding("warning", "the token travels unencrypted", "use an https:// endpoint")
    if not isinstance(outcome, Accepted):
        return Finding("warning", "not known, because the endpoint does not answer")
    return Finding("ok", "accepted" if given else "none, and none is needed")


def clock(settings: Settings) -> Finding:
    """Whether this machine and the endpoint agree about the time."""
    pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
    try:
        answer = pool.request("GET", settings.endpoint, redirect=False)
        there = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (urllib3.exceptions.HTTPError, KeyError, ValueError):
        return Finding("warning", "not known, because the endpoint does not say what time it is")
    apart = time.time() - there
    if abs(apart) > _CLOCK_TOLERANCE:
        which = "ahead of" if apart > 0 else "behind"
        return Finding("warning", f"{abs(apart):.0f} s {which} the endpoint's", "synchronize the clocks (chrony, ntpd)")
    return Finding("ok", "agrees with the endpoint's")


def writer(settings: Settings) -> Finding:
    """Whether rows are written by C."""
    if native_writers():
        return Finding("ok", "rows are written in C")
    return Finding(
        "warning",
        "rows are written in Python: a log call takes three to four times as long",
        "install a C compiler and Python's headers, and tensormeter again",
    )


def gpu(settings: Settings) -> Finding:
    """Whether values of CUDA devices reach a ring, and on which path."""
    folder = settings.buffer_directory
    paths = device_path_report(folder and _existing(folder), one_launch=settings.device_path == "auto")
    if not paths:
        return Finding("ok", "torch finds no CUDA device")
    found = "; ".join(f"{path.device} ({path.name}): {path.path}" for path in paths)
    if all(path.works and not path.synchronizes for path in paths):
        detour = any(path.path.startswith("events") for path in paths)
        return Finding("warning" if detour else "ok", found)
    return Finding("failed", found, "log .item() of the values of these devices, and tell us what it says here")


CHECKS: Final[list[Check]] = [shared_memory, ring, writer, gpu, agent, spool, endpoint, token, clock]
"""In the order in which they are made. Each is called with the settings, may raise what the machine raises, and has the
name under which its finding is shown."""


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _wait_for_agent(run: RunDirectory) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while (lock := run.try_agent_lock()) is None and time.monotonic() < deadline:
        Event().wait(0.01)
    if lock is not None:
        os.close(lock)


def _host(settings: Settings) -> str:
    return urllib3.util.parse_url(settings.endpoint).host or ""


def _token(settings: Settings) -> str | None:
    try:
        return settings.current_token()
    except TensormeterError:  # which the check of the token reports
        return None


@cache
def _probe(endpoint: str, token: str | None) -> Outcome:
    """What the endpoint says to a request without anything in it."""
    exporter = load_exporter("experiment")(ExporterConfig(endpoint=endpoint, token=token, timeout=_TIMEOUT))
    try:
        return exporter.export(Request(f"doctor-{uuid4().hex}", "metrics", gzip.compress(b""), 0))
    finally:
        exporter.shutdown()
