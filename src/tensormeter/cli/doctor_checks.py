"""The checks of `tensormeter doctor`. Each check examines one thing and suggests a remedy."""

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
"""Recommended free space for the ring buffers of a node, in bytes."""


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        state: `ok`, `warning` (works, but with a drawback) or `failed`.
        summary: Human-readable description of the observed state.
        advice: Suggested remedy, or "".
    """

    state: Literal["ok", "warning", "failed"]
    summary: str
    advice: str = ""


Check = Callable[[Settings], Finding]


def shared_memory(settings: Settings) -> Finding:
    """Check that shared memory has enough space for ring buffers."""
    folder = settings.buffer_directory
    if folder is None:
        return Finding(
            "warning",
            "no shared memory, so ring buffers are on disk and log calls may wait for the disk",
            "mount /dev/shm",
        )
    existing = _existing(folder)
    if not os.access(existing, os.W_OK):
        return Finding(
            "failed", f"{existing} is not writable", "set TENSORMETER_BUFFER_DIR to a folder that you can write to"
        )
    if refused := memory_directories(settings)[1]:
        return Finding(
            "warning",
            f"{refused[0][0]} is unusable, so ring buffers may be on disk: {refused[0][1]}",
            "delete it, ask its owner to delete it, or set TENSORMETER_BUFFER_DIR to another folder",
        )
    free = shutil.disk_usage(existing).free
    if free < max(_ROOM, 2 * settings.buffer_bytes):
        return Finding(
            "warning",
            f"only {free >> 20} MiB free in {existing}",
            "enlarge it (docker run --shm-size=1g), or lower TENSORMETER_BUFFER_BYTES",
        )
    return Finding("ok", f"{free >> 20} MiB free in {existing}")


def ring(settings: Settings) -> Finding:
    """Check that a ring buffer of the configured size can be created, locked and read."""
    parent = _existing(settings.buffer_directory or Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix="tensormeter-doctor-", dir=parent) as folder:
        ring_file = RingFile.create(Path(folder) / "doctor.ring", {"doctor": True}, buffer_bytes=settings.buffer_bytes)
        try:
            alive = ring_file.writer_alive()
            entries = list(RingFile.open(ring_file.path).entries())
        finally:
            ring_file.release()
    if not alive or len(entries) != 1:
        return Finding(
            "failed", f"a ring buffer in {parent} does not work", "set TENSORMETER_BUFFER_DIR to another folder"
        )
    return Finding("ok", f"{settings.buffer_bytes >> 20} MiB, reserved and locked")


def agent(settings: Settings) -> Finding:
    """Check that an agent starts and writes a logged row to disk."""
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
        seconds = time.monotonic() - began
        for directory in list_runs(Path(folder)):
            _wait_for_agent(directory)  # a running agent would recreate the folder after its deletion
        for directory in list_runs(Path(folder)):
            spool = Spool(directory.spool)
            try:
                items = spool.pending_items()
            finally:
                spool.close()
            if items >= 2:
                return Finding("ok", f"an agent started, and wrote a row to disk after {seconds:.1f} s")
    return Finding(
        "failed",
        "no agent wrote a row to disk within 30 s",
        "read the agent.log of a run (see `tensormeter spool ls`); as a workaround, set TENSORMETER_AGENT=thread",
    )


def spool(settings: Settings) -> Finding:
    """Check that undelivered data can be stored on disk, and count the runs that have undelivered data."""
    directory = settings.directory
    if not answers(directory, PATIENCE):
        return Finding(
            "failed",
            f"{directory} did not respond within {PATIENCE:.0f} s",
            "set TENSORMETER_DIR to a folder on another disk",
        )
    existing = _existing(directory)
    if not os.access(existing, os.W_OK):
        return Finding(
            "warning",
            f"{existing} is not writable; spools are kept in memory and do not survive a reboot",
            "set TENSORMETER_DIR to a folder that you can write to",
        )
    kind = network_filesystem(existing)
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            wait_for_lock(file.fileno())
    except OSError as error:
        return Finding(
            "warning",
            f"files in {existing} cannot be locked ({error}); spools are kept in memory and do not survive a reboot",
            "set TENSORMETER_DIR to a local disk",
        )
    if kind is not None:
        return Finding(
            "warning",
            f"{existing} is on {kind}, which is slower than a local disk",
            "set TENSORMETER_DIR to a local disk",
        )
    if weak := weakness(directory / "runs"):
        return Finding(
            "warning",
            f"other users can replace {directory}: {weak}; `tensormeter sync` ignores the settings stored there",
            "set TENSORMETER_DIR to a private folder",
        )
    searches = [find_runs(folder) for folder in (directory, *memory_directories(settings)[0])]
    runs = [run for runs, _ in searches for run in runs]
    unreadable = [str(path) for _, refused in searches for path, _ in refused]
    waiting = f"{len(runs)} runs have undelivered data"
    free = shutil.disk_usage(existing).free
    if free < settings.spool_max_bytes:
        return Finding(
            "warning",
            f"only {free >> 20} MiB free in {existing}, but a spool may use {settings.spool_max_bytes >> 20} MiB",
            "free some space, or lower TENSORMETER_SPOOL_MAX_BYTES",
        )
    if damaged := [run.path.name for run in runs if run.damage]:
        return Finding(
            "warning",
            f"{directory}: {waiting}; the run.json of {', '.join(damaged)} is unusable",
            "deliver them with `tensormeter sync`, which uses its own settings for such runs",
        )
    if unreadable:
        return Finding(
            "warning",
            f"{directory}: {waiting}; {', '.join(unreadable)} cannot be read",
            "see `tensormeter spool ls`",
        )
    if runs:
        return Finding("ok", f"{directory}: {waiting}", "deliver them with `tensormeter sync`")
    return Finding("ok", f"{directory}: nothing to deliver")


def endpoint(settings: Settings) -> Finding:
    """Check that the endpoint accepts OTLP."""
    outcome = _probe(settings.endpoint, _token(settings))
    match outcome:
        case Accepted():
            return Finding("ok", f"{settings.endpoint} accepts OTLP")
        case Unauthorized():
            return Finding("ok", f"{settings.endpoint} answers")
        case _:
            return Finding(
                "failed", outcome.reason, "start a server with `tensormeter serve`, or set TENSORMETER_ENDPOINT"
            )


def token(settings: Settings) -> Finding:
    """Check that the endpoint accepts the access token, and that the token is sent encrypted."""
    has_token = settings.current_token() is not None
    outcome = _probe(settings.endpoint, _token(settings))
    if isinstance(outcome, Unauthorized):
        problem = "the server refuses the token" if has_token else "the server needs a token"
        return Finding("failed", problem, "set TENSORMETER_TOKEN or TENSORMETER_TOKEN_FILE to a token of that server")
    if has_token and settings.endpoint.startswith("http:") and not is_loopback(_host(settings)):
        return Finding("warning", "the token is sent unencrypted", "use an https:// endpoint")
    if not isinstance(outcome, Accepted):
        return Finding("warning", "unknown, because the endpoint does not respond")
    return Finding("ok", "accepted" if has_token else "no token; the server needs none")


def clock(settings: Settings) -> Finding:
    """Check that the clocks of this machine and the endpoint agree."""
    pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
    try:
        response = pool.request("GET", settings.endpoint, redirect=False)
        server_time = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (urllib3.exceptions.HTTPError, KeyError, ValueError):
        return Finding("warning", "unknown, because the endpoint does not report its time")
    offset = time.time() - server_time
    if abs(offset) > _CLOCK_TOLERANCE:
        which = "ahead of" if offset > 0 else "behind"
        return Finding(
            "warning", f"{abs(offset):.0f} s {which} the endpoint's clock", "synchronize the clocks (chrony, ntpd)"
        )
    return Finding("ok", "agrees with the endpoint's clock")


def writer(settings: Settings) -> Finding:
    """Check that log calls use the C extension."""
    if native_writers():
        return Finding("ok", "log calls use the C extension")
    return Finding(
        "warning",
        "log calls use Python code, which takes three to four times as long as the C extension",
        "install a C compiler and Python's headers, then reinstall tensormeter",
    )


def gpu(settings: Settings) -> Finding:
    """Check whether and how values from CUDA devices reach the ring buffer."""
    folder = settings.buffer_directory
    paths = device_path_report(folder and _existing(folder), one_launch=settings.device_path == "auto")
    if not paths:
        return Finding("ok", "torch reports no CUDA device")
    summary = "; ".join(f"{path.device} ({path.name}): {path.path}" for path in paths)
    if all(path.works and not path.synchronizes for path in paths):
        slower = any(path.path.startswith("events") for path in paths)
        return Finding("warning" if slower else "ok", summary)
    return Finding(
        "failed", summary, "log the result of .item() for values on these devices, and report this output in an issue"
    )


CHECKS: Final[list[Check]] = [shared_memory, ring, writer, gpu, agent, spool, endpoint, token, clock]
"""Checks in the order in which they run.

Each check receives the settings and may raise any error. The output shows the name of the check's function with the
finding. If the check raises an error, the output shows the error and the first line of the check's docstring instead.
"""


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
    except TensormeterError:  # the token check reports this error
        return None


@cache
def _probe(endpoint: str, token: str | None) -> Outcome:
    """Send an empty request to the endpoint and return the outcome."""
    exporter = load_exporter("experiment")(ExporterConfig(endpoint=endpoint, token=token, timeout=_TIMEOUT))
    try:
        return exporter.export(Request(f"doctor-{uuid4().hex}", "metrics", gzip.compress(b""), 0))
    finally:
        exporter.shutdown()
