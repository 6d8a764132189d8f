"""Which metrics are reduced over steps, and how."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from tensormeter.errors import UsageError
from tensormeter.record.reduction.reduction import Rule

__all__ = ["Rules"]


class Rules:
    """Rules by patterns of names. Any thread."""

    def __init__(self) -> None:
        self._patterns: list[tuple[str, Rule]] = []
        self._found: dict[str, Rule | None] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._patterns)

    def define(self, pattern: str, rule: Rule, logged: Iterable[str]) -> None:
        """Add a rule, which comes before those that are there.

        Args:
            pattern: As in `fnmatch`.
            rule: For metrics whose names match.
            logged: Names that it is too late for.

        Raises:
            UsageError: One of those matches.
        """
        for name in logged:
            if fnmatchcase(name, pattern):
                raise UsageError(f"define_metric({pattern!r}): {name!r} has been logged already; define it before")
        self._patterns.insert(0, (pattern, rule))
        self._found.clear()

    def of(self, names: Iterable[str], rule: Rule | None) -> Mapping[str, Rule]:
        """The rules for those of a row's metrics that have one; `rule`, if a call has its own, is for all of them."""
        if rule is not None:
            return dict.fromkeys(names, rule)
        found = {}
        for name in names:
            try:
                defined = self._found[name]
            except KeyError:
                defined = next((r for pattern, r in self._patterns if fnmatchcase(name, pattern)), None)
                self._found[name] = defined
            if defined is not None:
                found[name] = defined
        return found
