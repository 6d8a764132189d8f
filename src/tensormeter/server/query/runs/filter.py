"""The filter language: `state = "running" and config.lr > 1e-4 and not tags has "base"`.

A recursive descent parser turns a filter into functions that select rows by their columns, so no part of the filter reaches a database.
RE2 matches regular expressions, in linear time for every pattern.
"""

import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import compress, repeat
from typing import Any, Final

import numpy as np
import re2

from tensormeter.errors import EncodingError, UsageError
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.document import parse_document
from tensormeter.server.query.line_search import LineSearch
from tensormeter.server.query.runs.fields import Columns, Field, find_field, unquote_name

__all__ = ["Filter", "parse_filter"]

MAX_LENGTH: Final = 8192
MAX_DEPTH: Final = 50
MAX_COMPARISONS: Final = 500
MAX_PATTERNS: Final = 10
MAX_FIELDS: Final = 100

_MATCHED: Final = 4096
"""Maximum number of characters to search in a value. RE2's time grows with value length times pattern length."""

_LITERAL: Final = re.compile(r"[\w /:@%&<>=~`'\",;!-]+", re.ASCII)
"""Pattern of regular expressions that match only themselves."""

_AT_ONCE: Final = 1024
"""Number of values between two calls of `check`."""

_SEARCHED_AT_ONCE: Final = 8
"""The same for regular expressions. Some take 30 ms for a value of `_MATCHED` characters."""

Rows = Sequence[int]
Select = Callable[[Columns, Rows], Rows]
"""Function that returns those of the rows, in the same order, whose values in the columns meet a condition."""

_Test = Callable[[Sequence[Any]], Iterable[bool]]
"""Function that returns which of the values meet a condition."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])) |
        (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') |
        (?P<operator><=|>=|!=|=|<|>|~|\(|\)|,) |
        (?P<quoted>`(?:[^`]|``)*`) |
        (?P<word>[A-Za-z_][\w./:@-]*) |
        (?P<end>$)
    )""",
    re.VERBOSE,
)
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "has", "true", "false", "null"})
_CONSTANTS: Final = {"true": True, "false": False, "null": None}
_NUMBERS: Final = frozenset({int, float, bool})
_ORDERS: Final = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Filter:
    """A condition on runs.

    Attributes:
        fields: Fields that the condition uses, by name.
        select: Function that selects rows, given the columns of these fields.
    """

    fields: Mapping[str, Field]
    select: Select


def parse_filter(text: str, check: Check = no_check) -> Filter:
    """Parse a filter; an empty filter matches all runs.

    Args:
        text: Condition in the filter language.
        check: Function called repeatedly; it can raise an exception to stop the query.

    Raises:
        UsageError: The filter is invalid. The message contains the position.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"filter: expected at most {MAX_LENGTH} characters, got {len(text)}")
    if not text.strip():
        return Filter({}, lambda _, rows: rows)
    parser = _Parser(text, check)
    select = parser.disjunction(0)
    parser.expect("end", "and, or, or the end")
    return Filter(parser.fields, select)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


class _Parser:
    def __init__(self, text: str, check: Check) -> None:
        self.fields: dict[str, Field] = {}
        self._check = check
        self._tokens = _tokenize(text)
        self._index = 0
        self._comparisons = 0
        self._patterns = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._index]

    def disjunction(self, depth: int) -> Select:
        parts = [self._conjunction(depth)]
        while self._take("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else _any_of(parts)

    def expect(self, kind: str, wanted: str) -> _Token:
        token = self._next
        if kind not in (token.kind, token.text if token.kind in ("operator", "keyword") else None):
            text = "the end" if token.kind == "end" else repr(token.text[:40])
            raise UsageError(f"filter: expected {wanted} at position {token.position}, got {text}")
        self._index += 1
        return token

    def _conjunction(self, depth: int) -> Select:
        parts = [self._condition(depth)]
        while self._take("and"):
            parts.append(self._condition(depth))
        return parts[0] if len(parts) == 1 else _all_of(parts)

    def _condition(self, depth: int) -> Select:
        if depth > MAX_DEPTH:
            raise UsageError(f"filter: more than {MAX_DEPTH} nested conditions at position {self._next.position}")
        if self._take("not"):
            inner = self._condition(depth + 1)
            return _negated(inner)
        if self._take("("):
            inner = self.disjunction(depth + 1)
            self.expect(")", "a closing parenthesis")
            return inner
        return self._comparison()

    def _comparison(self) -> Select:
        token = self.expect("field", "a field, not or (")
        try:
            field = self.fields.setdefault(token.text, find_field(token.text))
        except UsageError as error:
            raise UsageError(f"filter: at position {token.position}: {error}") from None
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise UsageError(f"filter: more than {MAX_COMPARISONS} comparisons at position {token.position}")
        if len(self.fields) > MAX_FIELDS:
            raise UsageError(f"filter: more than {MAX_FIELDS} different fields at position {token.position}")
        sign = self._next
        for name in ("=", "!=", *_ORDERS):
            if self._take(name):
                return _over(field, _comparator(name, self._literal(field)), self._check)
        if self._take("in"):
            self.expect("(", "an opening parenthesis")
            values = [self._literal(field)]
            while self._take(","):
                values.append(self._literal(field))
            self.expect(")", "a comma or a closing parenthesis")
            return _over(field, _each(lambda value: value in values), self._check)
        if self._take("~"):
            return _matching(field, self._pattern(), self._check)
        if self._take("has"):
            wanted = self._literal(field)
            return _over(field, _each(lambda value: _has(value, wanted)), self._check)
        raise UsageError(
            f"filter: expected an operator (= != < <= > >= ~ in has) at position {sign.position}, got "
            + ("the end" if sign.kind == "end" else repr(sign.text[:40]))
        )

    def _literal(self, field: Field) -> Any:
        token = self._next
        if token.kind == "number":
            self._index += 1
            return float(token.text) if re.search(r"[.eE]", token.text) else int(token.text[:400])
        if token.kind == "keyword" and token.text in _CONSTANTS:
            self._index += 1
            return _CONSTANTS[token.text]
        text = _unquote(self.expect("text", "a value"))
        return _moment(text, token.position) if field.is_time else text

    def _pattern(self) -> Any:
        token = self.expect("text", "a regular expression in quotes")
        self._patterns += 1
        if self._patterns > MAX_PATTERNS:
            raise UsageError(f"filter: more than {MAX_PATTERNS} regular expressions at position {token.position}")
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 1 << 20
        try:
            return re2.compile(_unquote(token), options)
        except re2.error as error:
            reason = (
                error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
            )
            raise UsageError(f"filter: not a regular expression at position {token.position}: {reason}") from None

    def _take(self, text: str) -> bool:
        if self._next.kind in ("operator", "keyword") and self._next.text == text:
            self._index += 1
            return True
        return False


def _tokenize(text: str) -> Sequence[_Token]:
    tokens: list[_Token] = []
    position = 0
    while not tokens or tokens[-1].kind != "end":
        match = _TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            raise UsageError(f"filter: cannot read {text[start : start + 20]!r} at position {start}")
        kind = match.lastgroup or "end"
        token = match.group(kind)
        start = match.start(kind)
        position = match.end()
        if kind == "word":
            kind = "keyword" if token in _KEYWORDS else "field"
        elif kind == "quoted":
            kind, token = "field", unquote_name(token)
        tokens.append(_Token(kind, token, start))
    return tokens


def _unquote(token: _Token) -> str:
    inner = token.text[1:-1]
    if token.text[0] == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    # Double each backslash that does not begin a JSON escape, so that users need not escape it in patterns.
    inner = re.sub(r'\\(?!["\\/bfnrtu])', r"\\\\", inner)
    # Escape line breaks and tabs, which JSON does not allow inside a string.
    inner = re.sub(r"[\x00-\x1f]", lambda control: f"\\u{ord(control[0]):04x}", inner)
    try:
        return str(parse_document(f'"{inner}"'))
    except EncodingError as error:
        raise UsageError(f"filter: {token.text[:40]} at position {token.position}: {error}") from None


def _moment(text: str, position: int) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"filter: expected a time such as 2026-11-22T10:00:00Z at position {position}, got {text[:40]!r}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000


def _over(field: Field, test: _Test, check: Check, at_once: int = _AT_ONCE) -> Select:
    def select(columns: Columns, rows: Rows) -> Rows:
        selected: list[int] = []
        for first in range(0, len(rows), at_once):
            check()
            some = rows[first : first + at_once]
            selected += compress(some, test(field.values(columns, some)))
        return selected

    return select


def _any_of(parts: Sequence[Select]) -> Select:
    def select(columns: Columns, rows: Rows) -> Rows:
        selected: set[int] = set()
        for part in parts:
            selected.update(part(columns, [row for row in rows if row not in selected]))
        return [row for row in rows if row in selected]

    return select


def _all_of(parts: Sequence[Select]) -> Select:
    def select(columns: Columns, rows: Rows) -> Rows:
        for part in parts:
            rows = part(columns, rows)
        return rows

    return select


def _negated(part: Select) -> Select:
    def select(columns: Columns, rows: Rows) -> Rows:
        excluded = {*part(columns, rows)}
        return [row for row in rows if row not in excluded]

    return select


def _each(test: Callable[[Any], bool]) -> _Test:
    return lambda values: map(test, values)


def _comparator(sign: str, literal: Any) -> _Test:
    if sign == "=":
        return _each(partial(operator.eq, literal))
    if sign == "!=":
        return _each(partial(operator.ne, literal))
    if literal is None:
        return _each(lambda _: False)
    order = _ORDERS[sign]
    comparable = str if isinstance(literal, str) else int | float

    def test(values: Sequence[Any]) -> Iterable[bool]:
        if set(map(type, values)) <= _NUMBERS and comparable is not str:
            return map(order, values, repeat(literal))
        return (isinstance(value, comparable) and order(value, literal) for value in values)

    return test


def _matching(field: Field, pattern: Any, check: Check) -> Select:
    text = pattern.pattern
    if _LITERAL.fullmatch(text):
        return _over(field, _each(lambda value: value is not None and text in _text(value)), check)
    one_by_one = _over(
        field,
        _each(lambda value: value is not None and pattern.search(_text(value)) is not None),
        check,
        _SEARCHED_AT_ONCE,
    )
    search = LineSearch(text, ignore_case=False)
    if not search.is_fast:
        return one_by_one

    def select(columns: Columns, rows: Rows) -> Rows:
        selected: list[int] = []
        for first in range(0, len(rows), _AT_ONCE):
            check()
            some = rows[first : first + _AT_ONCE]
            values = field.values(columns, some)
            present = [row for row, value in zip(some, values, strict=True) if value is not None]
            texts = [_text(value).encode() for value in values if value is not None]
            if any(b"\n" in text for text in texts):
                selected += one_by_one(columns, present)
                continue
            ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) - 1
            selected += [present[i] for i in search.find(b"\n".join([*texts, b""]), ends, check).tolist()]
        return selected

    return select


def _has(value: Any, wanted: Any) -> bool:
    match value:
        case str():
            return isinstance(wanted, str) and wanted in value
        case Mapping() | list() | tuple():
            return wanted in value
        case _:
            return False


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.isascii() and len(text) <= _MATCHED else text[:_MATCHED].encode(errors="replace").decode()
