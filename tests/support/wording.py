"""Checks the wording of the documentation, of docstrings and of texts in the code: `python tests/support/wording.py`.

CONTRIBUTING.md has the rules, and better sentences for the ones that fail.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CHECKED = (
    "*.md",
    "docs/**/*.md",
    "*/*.md",
    "src/**/*.py",
    "exporters/**/*.py",
    "build_hooks/*.py",
    "examples/*.py",
    "benchmarks/*.py",
    "tests/**/*.py",
    "*.py",
)
EXEMPT = ("tests/support/wording.py", "tests/test_wording.py", "tests/server/limits/test_server_expansion.py")
"""Files with examples of faults, and one that is still to be reworded."""

WORDS = re.compile(r"\b(?:nobody|somebody|whoever|whatever|anew|beside|of which|of (?:its|their) own)\b", re.IGNORECASE)
# A relative clause as the subject of a sentence, or half a phrase such as "Of the metrics".
OPENING = re.compile(r"(?:[Ww]hat|[Ww]ho|[Ww]hose|[Ww]here|Of)\b(?![^.!?]*\?)")
SENTENCES = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_`]*[A-Z])")
SECTION_ITEM = re.compile(r"^[\w*., ]+(?: \([^)]*\))?: (?=\S)")


class Fault(NamedTuple):
    """A place whose wording breaks a rule."""

    path: str
    line: int
    reason: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}: {self.sentence}"


def faults_of(text: str) -> Iterator[tuple[str, str]]:
    """Reason and sentence of each fault in one paragraph, list item or message."""
    text = re.sub(r"`+[^`]*`+", "`code`", " ".join(text.split()))
    for sentence in SENTENCES.split(text):
        bare = sentence.lstrip("\"'(*_[ ")
        if opening := OPENING.match(bare):
            yield f"opens with {opening[0]!r}", sentence
        for word in WORDS.finditer(sentence):
            yield f"{word[0]!r}", sentence


def markdown_texts(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each heading, paragraph, list item and table cell outside of code blocks."""
    block: list[str] = []
    start, fence = 1, ""
    # The README's table of settings is made from settings.py, which is checked itself.
    source = re.sub(
        r"<!-- settings -->.*?<!-- /settings -->", lambda table: "\n" * table[0].count("\n"), source, flags=re.DOTALL
    )
    for number, line in enumerate([*source.splitlines(), ""], 1):
        bare = line.strip()
        marker = re.match(r"`{3,}|~{3,}", bare)
        item = re.match(r"(?:[-*+]|\d+\.|#+|>)\s+", bare)
        ends = not bare or bool(fence) or marker or item or bare.startswith(("|", "<!--"))
        if ends and block:
            yield start, " ".join(block)
            block = []
        if marker and not fence:
            fence = marker[0]
        elif fence:
            fence = "" if bare.startswith(fence) else fence
        elif bare.startswith("|"):
            for cell in re.sub(r"`[^`]*`", "`code`", bare).strip("|").split("|"):
                yield number, cell.strip()
        elif bare and not bare.startswith("<!--"):
            start = start if block else number
            block.append(bare[item.end() :] if item else bare)


def docstring_texts(docstring: str) -> Iterator[tuple[int, str]]:
    """Line (from 0) and text of each paragraph, list item and item of a section (`Args:`) of a docstring."""
    block: list[str] = []
    start, section, indent = 0, False, 0
    for number, line in enumerate([*docstring.splitlines(), ""]):
        bare = line.strip()
        depth = len(line) - len(line.lstrip())
        header = re.fullmatch(r"(?:Args|Attributes|Raises|Returns|Yields):", bare)
        bullet = re.match(r"[-*]\s+", bare)
        item = SECTION_ITEM.match(bare) if section and depth <= indent else None
        if block and (not bare or header or bullet or item):
            yield start, " ".join(block)
            block = []
        if header:
            section, indent = True, depth + 4
        elif bare and not bare.startswith(">>>"):
            section = section and depth >= indent
            start = start if block else number
            block.append(bare[(bullet or item).end() :] if bullet or item else bare)  # type: ignore[union-attr]


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each part of a docstring, and of every literal of three or more words."""
    tree = ast.parse(source)
    docstrings, parts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts.update(node.values)
    for node in ast.walk(tree):
        if node in docstrings:
            for line, text in docstring_texts(node.value):
                yield node.lineno + line, text
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            text = node.value
        else:
            continue
        if len(text.split()) >= 3:
            for number, paragraph in markdown_texts(text):
                yield node.lineno + number - 1, paragraph


def check(path: str, source: str) -> list[Fault]:
    """All faults in one file."""
    texts = markdown_texts(source) if path.endswith(".md") else python_texts(source)
    return [Fault(path, line, reason, sentence) for line, text in texts for reason, sentence in faults_of(text)]


def main() -> int:
    """Print the faults of all checked files. With arguments: only of these files, and of files in these folders."""
    paths = sorted({path.relative_to(ROOT) for pattern in CHECKED for path in ROOT.glob(pattern)})
    paths = [path for path in paths if not {".venv", "node_modules"} & set(path.parts) and str(path) not in EXEMPT]
    wanted = [Path(argument) for argument in sys.argv[1:]]
    status = 0
    for path in paths:
        if wanted and not any(path.is_relative_to(folder) for folder in wanted):
            continue
        for fault in check(str(path), (ROOT / path).read_text()):
            print(fault)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
