"""The code and the artifacts of a run, as text for the terminal."""

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.terminal import number, plain, plain_lines
from tensormeter.client import RecordedArtifact, RecordedCode

__all__ = ["code_facts", "print_artifacts", "print_code", "print_lines"]

_MOST_ARTIFACTS: Final = 20
_SHORT: Final = 12
"""Length of a shortened commit or digest in characters."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}


def code_facts(code: RecordedCode) -> list[tuple[str, str]]:
    """Return lines about the commit, as pairs of label and text."""
    facts = []
    if code.commit:
        branch = f" ({code.branch})" if code.branch else ""
        facts.append(("commit", f"{code.commit[:_SHORT]}{branch}"))
    if code.remote:
        facts.append(("remote", code.remote))
    if code.dirty:
        facts.append(("changes", f"uncommitted, in {_count(_changed_files(code.diff), 'file')}"))
    elif code.dirty is False:
        facts.append(("changes", "none"))
    if code.untracked:
        facts.append(("untracked", _count(len(code.untracked), "file or folder", "files or folders")))
    return [(label, plain(text)) for label, text in facts]


def print_code(console: Console, code: RecordedCode | None) -> None:
    """Print all that is known about the code of a run."""
    if code is None:
        console.print("the code was not recorded")
        return
    grid = Table.grid(padding=(0, 2))
    for label, text in code_facts(code):
        grid.add_row(label, Text(text))
    for label, text in (("python", code.python), ("gpus", ", ".join(code.gpus)), ("problem", code.problem)):
        if text:
            grid.add_row(label, Text(plain(text)))
    console.print(grid)
    untracked = [plain(name) for name in code.untracked]
    packages = [plain(f"{name}=={version}") for name, version in code.packages.items()]
    for title, lines in (
        ("uncommitted changes", plain_lines(code.diff)),
        ("untracked", untracked),
        (f"source of {plain(code.script)}", plain_lines(code.source)),
        ("packages", packages),
    ):
        if lines:
            console.print()
            console.print(Text(title, style="bold"))
            print_lines(console, lines, colored=title == "uncommitted changes")


def print_lines(console: Console, lines: list[str], *, colored: bool) -> None:
    """Print lines as they are. If `colored` is true, they are those of a diff."""
    for line in lines:
        console.print(Text(line, style=_STYLES.get(line[:1], "") if colored else ""), soft_wrap=True)


def print_artifacts(console: Console, artifacts: list[RecordedArtifact]) -> None:
    """Print a table of artifacts, newest first."""
    if not artifacts:
        return
    table = Table("artifact", "aliases", box=None, header_style="bold", pad_edge=False)
    table.add_column("step", justify="right")
    table.add_column("size", justify="right")
    table.add_column("digest")
    table.add_column("place", overflow="fold")
    for artifact in artifacts[:_MOST_ARTIFACTS]:
        digest = (artifact.digest or "").removeprefix("sha256:")[:_SHORT] or (artifact.problem and "none") or "pending"
        table.add_row(
            Text(plain(artifact.key)),
            Text(plain(", ".join(artifact.aliases))),
            "" if artifact.step is None else f"{artifact.step:,}",
            "" if artifact.size is None else _size(artifact.size),
            Text(plain(digest)),
            Text(plain(artifact.place)),
        )
    console.print()
    console.print(table)
    if len(artifacts) > _MOST_ARTIFACTS:
        console.print(Text(f"and {len(artifacts) - _MOST_ARTIFACTS} older artifacts"))


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{number(float(f'{value:.3g}'))} {_UNITS[unit]}"


def _changed_files(diff: str) -> int:
    return sum(line.startswith("diff --git ") for line in diff.split("\n"))


def _count(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"
