"""Redaction of any text: addresses, tokens, assignments, options, headers, JSON and XML."""

import re
from typing import Final

from tensormeter.redaction.addresses import mask_addresses
from tensormeter.redaction.names import suspect
from tensormeter.redaction.values import MASK, is_secret, mask_tokens

__all__ = ["mask_text"]

_QUOTED: Final = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'"

_ASSIGNMENT: Final = re.compile(
    rf"(?<![\w.+-])(?P<name>[\w.+-]{{1,128}})(?P<sign>=)(?P<value>{_QUOTED}|(?:(?!,[\w.+-]{{1,128}}[=:])[^\s;&\"'])+)"
)
"""`name=value`, in shells, Hydra, Python, ODBC and connection strings."""

_MEMBER: Final = re.compile(
    rf"(?P<before>[\"'])(?P<name>[^\"'\\\n]{{1,128}})(?P<sign>[\"']\s{{0,64}}:\s{{0,64}})(?P<value>{_QUOTED}|[\w.+-]+)"
)
"""`"name": "value"`, in JSON and Python."""

_STATEMENT: Final = re.compile(
    rf"(?<![\w.])(?P<name>[\w.]{{1,128}})(?P<sign>[\"']?\]?\s{{0,8}}[=:]\s{{0,8}})(?P<value>{_QUOTED})"
)
"""`name = "value"`, in Python and TOML, and `os.environ["NAME"] = "value"`."""

_PAIR: Final = re.compile(
    r"(?P<name>[A-Za-z][\w.+-]{0,127})(?P<sign>[ \t]{0,8}:[ \t]*(?:(?i:bearer|basic|token|digest|apikey|negotiate)[ \t]+)?)"
    r"(?P<value>\S+)"
)
"""A string that consists only of `name: value`, with any characters in the value."""

_ENTRY: Final = re.compile(
    rf"(?P<before>^|[\n{{,(])(?P<sign_before>[ \t]{{0,64}}(?:-[ \t]+|-H[ \t]?)?)(?P<name>[A-Za-z][\w.+-]{{0,127}})"
    rf"(?P<sign>[ \t]{{0,8}}[:=][ \t]*(?:(?i:bearer|basic|token|digest|apikey|negotiate)[ \t]+)?)"
    rf"(?P<value>{_QUOTED}|[^\s,{{}}\[\]\"']+)(?=[ \t]*(?:$|[\n,}}\])]))"
)
"""`name: value` on a line or in braces, as in HTTP headers and YAML."""

_WHOLE_LINE: Final = re.compile(
    r"(?P<name>(?i:authorization|proxy-authorization|cookie|set-cookie))(?P<sign>\s{0,8}:\s{0,8}(?:(?i:bearer|basic|token|digest|apikey)\s+)?)"
    r"(?P<value>[^\n\"']+)"
)

_OPTION: Final = re.compile(
    rf"(?<!\S)(?P<name>-{{1,2}}[A-Za-z][\w.-]{{1,127}})(?P<sign>\s{{1,8}})(?P<value>{_QUOTED}|[^\s\"'-][^\s\"']*)"
)
"""`--name value`, in a string that contains a command line."""


_ELEMENT: Final = re.compile(
    r"<(?P<name>[A-Za-z_][\w.:-]{0,127})(?P<sign>(?:\s[^<>]{0,512})?>(?:<!\[CDATA\[)?)(?P<value>[^<>\]]+)(?=(?:\]\]>)?</(?P=name)\s{0,8}>)"
)
_NAMED_ELEMENT: Final = re.compile(
    r"\s(?:name|key|id)\s{0,8}=\s{0,8}[\"'](?P<name>[^\"'<>]{1,128})(?P<sign>[\"']"
    r"(?:\s{1,64}value\s{0,8}=\s{0,8}[\"']|\s{0,64}>(?:<!\[CDATA\[)?))(?P<value>[^\"'<>\]]+)"
)
_LISTED_ELEMENT: Final = re.compile(
    r"<(?:key|name)>(?P<name>[^<>]{1,128})(?P<sign></(?:key|name)>\s{0,64}<(?:string|value)>)(?P<value>[^<>]+)"
)
"""XML: `<name>value</name>`, `<entry name="name" value="value"/>`, `<key>name</key><string>value</string>`."""

_ESCAPED: Final = re.compile(
    r"\\{1,7}\"(?P<name>[^\"\\\n]{1,128})(?P<sign>\\{1,7}\"\s{0,64}:\s{0,64}\\{1,7}\")(?P<value>[^\"]+?)(?=\\{1,7}\")"
)
"""`\\"name\\": \\"value\\"`: JSON inside a quoted string."""

_NETRC: Final = re.compile(
    r"(?<![\w.-])(?:machine\s{1,64}\S{1,253}|default|login\s{1,64}\S{1,253}|account\s{1,64}\S{1,253})"
    r"\s{1,64}(?P<name>password)(?P<sign>\s{1,64})(?P<value>\S+)"
)
"""`machine host login name password value`, in `.netrc`."""

_SPOKEN: Final = re.compile(r"[Tt]okens?")
_PLAIN_WORDS: Final = re.compile(r"\s{0,8}[A-Za-z][a-z]{0,15}[.,!?]?(?:\s{1,8}[A-Za-z][a-z]{0,15}[.,!?]?){0,64}\s{0,8}")
"""Plain words, as in the prompt line `Token: hello` and in `<token> a word </token>`."""


def mask_text(text: str) -> str:
    """Replace secrets in a string with `***`, in time proportional to its length."""
    masked = mask_tokens(mask_addresses(text))
    pair = _PAIR.fullmatch(masked)
    if pair:
        masked = _mask(pair)
    if ":" in masked:
        masked = _MEMBER.sub(_mask, _WHOLE_LINE.sub(_mask, masked))
    if "</" in masked:
        masked = _LISTED_ELEMENT.sub(_mask, _ELEMENT.sub(_mask, masked))
    if "<" in masked:
        masked = _NAMED_ELEMENT.sub(_mask, masked)
    if '\\"' in masked:
        masked = _ESCAPED.sub(_mask, masked)
    if "password" in masked:
        masked = _NETRC.sub(_mask, masked)
    if ":" in masked or "=" in masked:
        masked = _ENTRY.sub(_mask, _STATEMENT.sub(_mask, masked))
    if "=" in masked:
        masked = _ASSIGNMENT.sub(_mask, masked)
    if "-" in masked:
        masked = _OPTION.sub(_mask, masked)
    return masked


def _mask(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0] else ""
    inner = value[1:-1] if quote else value
    if not is_secret(inner, suspect(match["name"])):
        return match[0]
    if not quote and "=" not in match["sign"] and _SPOKEN.fullmatch(match["name"]) and _PLAIN_WORDS.fullmatch(inner):
        return match[0]
    return f"{match[0][: match.start('value') - match.start()]}{quote}{MASK}{quote}"
