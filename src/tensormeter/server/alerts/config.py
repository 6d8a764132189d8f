"""Alert rules and webhooks. They are read from a TOML file of the server's owner, so clients cannot add any."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from tensormeter.conventions.semconv import DROPPED
from tensormeter.errors import SettingsError, join_choices

__all__ = ["MAX_AGE", "AlertConfig", "Rule", "load_alert_config"]

MAX_AGE: Final = 86_400 * 10**9
"""Maximum age in nanoseconds of what raises alerts: imported runs must not wake anyone."""

Kind = Literal["nan", "spike", "stall", "threshold"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition that raises an alert.

    Attributes:
        kind: `nan` for a value that is NaN or infinite, `spike` for a value far above the previous values, `stall` for
            a run without new steps, or `threshold` for a value above or below a bound.
        project: Pattern that project names must match, such as `llm-*`.
        metric: Pattern that metric names must match; ignored for `stall`.
        above: Bound above which a value raises a `threshold` alert.
        below: Bound below which a value raises a `threshold` alert.
        score: Distance from the median of the previous values, in robust standard deviations, above which a value is a
            `spike`. A robust standard deviation is 1.4826 times the median absolute deviation.
        window: Number of previous values with which `spike` compares a value, 20 to 10,000.
        factor: Multiple of the median step time after which a run without new steps has stalled.
        seconds: Minimum time without new steps, in seconds, after which a run has stalled.

    Raises:
        SettingsError: A value is invalid.
    """

    kind: Kind
    project: str = "*"
    metric: str = "*"
    above: float | None = None
    below: float | None = None
    score: float = 8.0
    window: int = 100
    factor: float = 10.0
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"kind: expected {join_choices(*get_args(Kind))}; got {self.kind!r}")
        for name in ("project", "metric"):
            if not isinstance(getattr(self, name), str):
                raise SettingsError(f"{name}: expected a string, got {getattr(self, name)!r}")
        for name in ("above", "below", "score", "factor", "seconds"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value)
            ):
                raise SettingsError(f"{name}: expected a number, got {value!r}")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or not 20 <= self.window <= 10_000:
            raise SettingsError(f"window: expected an integer from 20 to 10000, got {self.window!r}")
        if self.kind == "threshold" and self.above is None and self.below is None:
            raise SettingsError("threshold: set above, below or both")

    def applies(self, project: str, metric: str | None = None) -> bool:
        """Return whether the rule applies to the project and, if given, the metric."""
        return fnmatchcase(project, self.project) and (metric is None or fnmatchcase(metric, self.metric))


_DEFAULTS: Final = (
    Rule(kind="nan", metric="*loss*"),
    Rule(kind="nan", metric="*grad*"),
    Rule(kind="spike", metric="*loss*"),
    Rule(kind="stall"),
    Rule(kind="threshold", metric=DROPPED, above=0.0),
)


@dataclass(frozen=True)
class AlertConfig:
    """Alert rules and webhook URLs. The URLs are secrets."""

    rules: Sequence[Rule] = _DEFAULTS
    webhooks: Sequence[str] = field(default=(), repr=False)


def load_alert_config(file: Path) -> AlertConfig:
    """Read alert rules and webhooks from a TOML file.

    A `[[rule]]` table contains the attributes of a `Rule`, and a `[[webhook]]` table contains a `url`. The key
    `defaults = false` removes the default rules. The file can omit any of these.

    Raises:
        SettingsError: The file cannot be read, or contains an invalid key or table. The message names it.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"alerts {file}: cannot read the file ({error})") from None
    unknown = document.keys() - {"defaults", "rule", "webhook"}
    if unknown:
        raise SettingsError(
            f"alerts {file}: unknown keys {sorted(unknown)}; the keys can only be `defaults`, `rule` and `webhook`"
        )
    rules: list[Rule] = list(_DEFAULTS) if document.get("defaults", True) else []
    for number, entry in enumerate(_tables(document, "rule", file), 1):
        try:
            rules.append(_rule(entry))
        except SettingsError as error:
            raise SettingsError(f"alerts {file}: rule {number}: {error}") from None
    webhooks = []
    for number, entry in enumerate(_tables(document, "webhook", file), 1):
        url = entry.get("url")
        if not isinstance(url, str) or not _is_url(url):
            raise SettingsError(f"alerts {file}: webhook {number}: expected url = 'https://...'")  # the URL is a secret
        webhooks.append(url)
    return AlertConfig(tuple(rules), tuple(dict.fromkeys(webhooks)))


def _tables(document: Mapping[str, Any], name: str, file: Path) -> Sequence[Mapping[str, Any]]:
    tables = document.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"alerts {file}: expected [[{name}]] tables")
    return tables


def _rule(entry: Mapping[str, Any]) -> Rule:
    known = {attribute.name for attribute in fields(Rule)}
    if not entry.keys() <= known or "kind" not in entry:
        optional = ", ".join(sorted(known - {"kind"}))
        raise SettingsError(f"`kind` is required, and the other keys can only be {optional}; got {sorted(entry)}")
    return Rule(**entry)


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
