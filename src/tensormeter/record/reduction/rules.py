"""Reduction rules for metrics."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from tensormeter.errors import UsageError
from tensormeter.record.reduction.reduction import Rule

__all__ = ["Rules"]


class Rules:
    """Reduction rules, each with a pattern for metric names. Thread-safe."""

    def __init__(self) -> None:
        self._patterns: list[tuple[str, Rule]] = []
        self._rules: dict[str, Rule | None] = {}

    def __bool__(self) -> bool:
        """Return whether there are any rules."""
        return bool(self._patterns)

    def define(self, pattern: str, rule: Rule, logged: Iterable[str]) -> None:
        """Add a rule, which takes precedence over earlier rules.

        Args:
            pattern: Pattern for metric names, as in `fnmatch`.
            rule: Rule for the matching metrics.
            logged: Names of metrics that have already been logged.

        Raises:
            UsageError: The pattern matches a name in `logged`.
        """
        for name in logged:
            if fnmatchcase(name, pattern):
                raise UsageError(
                    f"define_metric({pattern!r}): {name!r} has already been logged; define it before its first log call"
                )
        self._patterns.insert(0, (pattern, rule))
        self._rules.clear()

    def of(self, names: Iterable[str], rule: Rule | None) -> Mapping[str, Rule]:
        """Return the rules for a row's metrics by name. Omit metrics without a rule.

        Args:
            names: Names of the metrics.
            rule: Rule of the log call, which applies to all metrics. None applies the rule that was defined for each metric.
        """
        if rule is not None:
            return dict.fromkeys(names, rule)
        rules = {}
        for name in names:
            try:
                defined = self._rules[name]
            except KeyError:
                defined = next((r for pattern, r in self._patterns if fnmatchcase(name, pattern)), None)
                self._rules[name] = defined
            if defined is not None:
                rules[name] = defined
        return rules
