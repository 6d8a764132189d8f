"""The command `tensormeter logs`."""

import os
import sys
from datetime import UTC, datetime
from typing import Final, Literal

import click

from tensormeter.cli.options import endpoint_option
from tensormeter.cli.terminal import plain_line
from tensormeter.client import Connection, LogLine, StoredRun, find_run
from tensormeter.client.logs import SEVERITIES
from tensormeter.errors import UsageError

__all__ = ["logs"]

_FOLLOWED: Final = 100
"""Number of lines before those that are followed."""

_LISTED: Final = 8
"""Maximum number of ranks in an error message."""

_INTERRUPTED: Final = 130


@click.command()
@click.argument("run")
@click.option("--follow", "-f", is_flag=True, help="Print new lines as they arrive, until the run has ended.")
@click.option("--rank", type=click.IntRange(min=0), help="Print only the lines of this rank.")
@click.option("--grep", "-g", "pattern", metavar="PATTERN", help="Print only lines that match this regular expression.")
@click.option(
    "--severity",
    metavar="LEVEL",
    type=click.Choice([*SEVERITIES], case_sensitive=False),
    help=f"Print only lines of at least this level: {', '.join(SEVERITIES)}.",
)
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Print only what was printed to this stream.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Print only the last N lines.  [default: all; {_FOLLOWED} with --follow]",
)
@click.option("--timestamps", "-t", is_flag=True, help="Print the time of each line.")
@click.option("--project", help="Project of the run; required if the ID or name exists in several projects.")
@endpoint_option
def logs(
    run: str,
    *,
    follow: bool,
    rank: int | None,
    pattern: str | None,
    severity: str | None,
    stream: Literal["stdout", "stderr"] | None,
    lines: int | None,
    timestamps: bool,
    project: str | None,
    endpoint: str | None,
) -> None:
    """Print the log of a run: the console output and log records of its processes, in all attempts.

    RUN is an ID, the beginning of an ID, or a unique name. Escape sequences and control characters are removed. If the
    run has several ranks, each line begins with its rank.
    """
    connection = Connection(endpoint)
    stored_run = StoredRun(connection, find_run(connection, run, project, fields=""))
    tail = _FOLLOWED if follow and lines is None else lines
    wanted = stored_run.logs(pattern=pattern, severity=severity or 0, rank=rank, stream=stream, tail=tail)
    ranks = {process.rank for process in stored_run.processes() if process.rank is not None}
    if rank is not None and rank not in ranks:
        known = ", ".join(str(number) for number in sorted(ranks)[:_LISTED]) + (", ..." if len(ranks) > _LISTED else "")
        problem = f"rank {rank}: the run has no such rank; it has {known or 'none'}"
        if not follow:
            raise UsageError(problem)
        print(f"tensormeter: {problem} so far", file=sys.stderr)
    ranked = rank is None and len(ranks) > 1
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for line in wanted.follow() if follow else wanted:
            _print(line, ranked=ranked, timestamps=timestamps, flush=follow)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    if wanted.evicted:
        print(f"tensormeter: {wanted.evicted:,} older lines were deleted, because there were too many", file=sys.stderr)
    if wanted.damaged:
        print(f"tensormeter: {wanted.damaged:,} lines are missing, because the store is damaged", file=sys.stderr)


def _print(line: LogLine, *, ranked: bool, timestamps: bool, flush: bool) -> None:
    before = f"{_moment(line.time)} " if timestamps else ""
    if ranked:
        before += f"[{'?' if line.rank is None else line.rank}] "
    for part in line.text.split("\n"):
        print(f"{before}{plain_line(part)}")
    if flush:
        sys.stdout.flush()


def _moment(nanoseconds: int) -> str:
    """Format a time in this machine's time zone, to the millisecond."""
    try:
        moment = datetime.fromtimestamp(nanoseconds // 10**9, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{nanoseconds // 10**6 % 1000:03}"
