"""The command `tensormeter diff`."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from tensormeter.cli.options import endpoint_option
from tensormeter.cli.provenance import print_lines
from tensormeter.cli.terminal import plain, plain_lines
from tensormeter.client import Connection, RecordedCode, StoredRun, find_run
from tensormeter.conventions.nesting import flatten

__all__ = ["diff"]

PARTS: Final = ("config", "packages", "code")

_MOST_LINES: Final = 10_000
"""Maximum number of lines of a text to compare line by line, because the time may grow with their square."""


@click.command()
@click.argument("run")
@click.argument("other")
@click.option("--project", help="Project of both runs; required if an ID or name exists in several projects.")
@click.option(
    "--only",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Compare only this part; may be repeated.  [default: all parts]",
)
@endpoint_option
def diff(run: str, other: str, project: str | None, parts: tuple[str, ...], endpoint: str | None) -> None:
    """Compare the configuration, packages and code of two runs.

    RUN and OTHER are IDs, beginnings of IDs, or unique names. Lines that begin with - are those of RUN, and lines that begin
    with + those of OTHER.
    """
    client = Connection(endpoint)
    sides = [find_run(client, selector, project, fields="config") for selector in (run, other)]
    console = Console()
    labels = [plain(f"{side['project']}/{side['id']} {side['name']}") for side in sides]
    print_lines(console, [f"- {labels[0]}", f"+ {labels[1]}"], colored=True)
    chosen = parts or PARTS
    if "config" in chosen:
        before, after = ({key: _text(value) for key, value in flatten(side["config"]).items()} for side in sides)
        _print_part(console, "configuration", _entries(before, after, " = "))
    if chosen == ("config",):
        return
    first, second = (StoredRun(client, side).code for side in sides)
    if first is None or second is None:
        missing = " and ".join(label for label, code in zip(labels, (first, second), strict=True) if code is None)
        _print_part(console, "code", [f"not recorded for {missing}"])
        return
    if "packages" in chosen:
        versions = [{"python": code.python, **code.packages} for code in (first, second)]
        _print_part(console, "packages", _entries(versions[0], versions[1], "=="))
    if "code" in chosen:
        _print_part(console, "git", _git(first, second))
        _print_part(console, "source", _texts(first.source, second.source, first.script, second.script))


def _print_part(console: Console, title: str, lines: list[str]) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    print_lines(console, lines or ["no differences"], colored=True)


def _entries(before: Mapping[str, str], after: Mapping[str, str], sign: str) -> list[str]:
    """Return the lines of the entries that differ."""
    lines = []
    for key in sorted({*before, *after}, key=str.lower):
        if before.get(key) != after.get(key):
            lines += [
                f"{mark} {plain(key)}{sign}{plain(side[key])}"
                for mark, side in (("-", before), ("+", after))
                if key in side
            ]
    return lines


def _git(first: RecordedCode, second: RecordedCode) -> list[str]:
    """Return the lines for the commits and the uncommitted changes."""
    facts = [
        {"commit": code.commit, "branch": code.branch, "remote": code.remote, "untracked": ", ".join(code.untracked)}
        for code in (first, second)
    ]
    lines = _entries(facts[0], facts[1], " ")
    if first.diff == second.diff:
        return lines
    if first.diff and second.diff and first.commit == second.commit:
        return lines + _texts(first.diff, second.diff, "uncommitted changes", "uncommitted changes")
    for mark, code in (("-", first), ("+", second)):
        if code.diff:
            lines += [f"{mark} uncommitted changes:", *(f"{mark} {line}" for line in plain_lines(code.diff))]
    return lines


def _texts(before: str, after: str, name: str, other_name: str) -> list[str]:
    """Return the lines of a unified diff."""
    if before == after:
        return []
    old, new = plain_lines(before), plain_lines(after)
    if max(len(old), len(new)) > _MOST_LINES:
        return [f"they differ, but have more than {_MOST_LINES:,} lines"]
    return list(difflib.unified_diff(old, new, plain(name), plain(other_name), lineterm="")) or [
        "they differ only in characters that cannot be shown"
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
