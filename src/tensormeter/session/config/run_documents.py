"""The documents that describe a run: its configuration, its summary, and the definitions of its metrics."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from tensormeter.conventions.fitting import OmittedValue
from tensormeter.conventions.limits import CONFIG_BYTES
from tensormeter.conventions.semconv import RANK
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.errors import UsageError, join_choices
from tensormeter.logger import get_logger
from tensormeter.record.warn_once import shown
from tensormeter.redaction import environment_secrets, mask_config
from tensormeter.resource import describe_rank
from tensormeter.session.config.document import Changes, Document

__all__ = ["RunDocuments"]

logger: Final = get_logger()

_MOST_NAMED: Final = 10
"""Maximum number of masked entries that one warning names."""

_MOST_DEFINITIONS: Final = 200
"""Maximum number of names and patterns that are defined for the server."""

_MOST_TEXTS: Final = 1000
"""Maximum number of logged texts in the summary."""

_SUMMARIES: Final = ("min", "max", "mean", "last", "none")


class RunDocuments:
    """The documents of one run. Secrets in them are masked, and one warning names the masked entries.

    Attributes:
        config: Configuration of the run.
        summary: Results that the script has stated, and short texts that it has logged.
    """

    def __init__(
        self, run_id: str, config: Any, store: Callable[[str, Callable[[], Changes]], None], *, masks: bool, warns: bool
    ) -> None:
        """
        Args:
            run_id: ID of the run, for messages.
            config: Initial configuration (see `to_json`).
            store: Function that receives a document's name (`config`, `summary` or `definitions`) and a function that changes the
                document. It calls the function and sends the change, or neither if the run has finished. Calls must not
                overlap.
            masks: Whether to mask secrets.
            warns: Whether to warn about masked entries.
        """
        self._run_id = run_id
        self._store = store
        self._masks = masks
        self._warns = warns
        self._masked: set[str] = set()
        self._definitions: dict[str, dict[str, str]] = {}
        self._texts: dict[str, str] = {}
        """Logged texts in the summary, by name."""
        self.config = self._document("config")
        self.config.begin(config)
        self.summary = self._document("summary", null_removes=True)

    def values(self, name: str) -> Mapping[str, Any]:
        """Return the whole document with this name."""
        documents = {
            "config": self.config.values,
            "summary": self.summary.values,
            "definitions": self._definitions,
        }
        return documents[name]

    def define(self, name: object, summary: object, step_metric: object) -> None:
        """Define how a metric is summarized and drawn. See `Run.define_metric` for the arguments. The latest one comes last.

        Raises:
            UsageError: A value is invalid.
        """
        definition = _definition(name, summary, step_metric)
        if definition:
            self._store("definitions", partial(self._define, str(name), definition))

    def note_text(self, key: str, text: str) -> None:
        """Show a short text that was logged in the summary, unless the script has stated a result of this name."""
        known, stated = self._texts.get(key), self.summary.values.get(key)
        if stated == known and (known is not None or len(self._texts) < _MOST_TEXTS):
            self._texts[key] = text
            self.summary.assign((), key, text)

    def take_omitted(self) -> dict[str, list[OmittedValue]]:
        """Return the values that documents have left out since the last call because they were too large, by document."""
        omitted = {}
        for name, document in (("config", self.config), ("summary", self.summary)):
            values, document.omitted = document.omitted, []
            if values:
                omitted[name] = values
        return omitted

    def _document(self, name: str, *, null_removes: bool = False) -> Document:
        return Document(
            name,
            CONFIG_BYTES,
            partial(self._without_secrets, name),
            partial(self._store, name),
            null_removes=null_removes,
        )

    def _define(self, name: str, definition: dict[str, str]) -> Changes:
        if name not in self._definitions and len(self._definitions) >= _MOST_DEFINITIONS:
            logger.warning(
                "define_metric: %s is ignored: run %s already has %d definitions; use patterns such as train/*",
                *(shown(name), self._run_id, _MOST_DEFINITIONS),
            )
            return {}
        self._definitions[name] = {**self._definitions.pop(name, {}), **definition}
        return None

    def _without_secrets(self, document: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._masks:
            return values
        masked, names = mask_config(values, environment_secrets(os.environ))
        new = [name for name in names if name not in self._masked]
        self._masked.update(new)
        if new and self._warns:
            logger.log(
                logging.INFO if describe_rank().get(RANK) else logging.WARNING,  # one rank is enough
                "run %s: %s: %s %s recorded as ***, because %s like %s; rename entries that are "
                "not secret, or set TENSORMETER_MASK_CONFIG=false to record the configuration unmasked",
                self._run_id,
                document,
                ", ".join(new[:_MOST_NAMED])
                + (f" and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""),
                *(("is", "it looks", "a secret") if len(new) == 1 else ("are", "they look", "secrets")),
            )
        return masked


def _definition(name: object, summary: object, step_metric: object) -> dict[str, str]:
    """Return what the server needs to know about a metric.

    Raises:
        UsageError: A value is invalid.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"define_metric: expected a metric name or a pattern, got {shown(name)}")
    definition: dict[str, str] = {}
    if summary is not None:
        if summary not in _SUMMARIES:
            raise UsageError(f"define_metric: expected the summary {join_choices(*_SUMMARIES)}, got {shown(summary)}")
        definition["summary"] = str(summary)
    if step_metric is not None:
        if not isinstance(step_metric, str) or not step_metric:
            raise UsageError(f"define_metric: expected a metric name as step_metric, got {shown(step_metric)}")
        definition["step_metric"] = as_unicode(step_metric)
    return definition
