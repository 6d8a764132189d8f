"""Records of files that an import leaves where they are."""

from collections.abc import Mapping
from typing import Any, Final

from tensormeter.conventions.labels import fit_label
from tensormeter.conventions.semconv import ARTIFACT_EVENT, MEDIA_KEY, STEP_METRIC
from tensormeter.otlp.batch import Event
from tensormeter.redaction import mask_address

__all__ = ["artifact_record"]

_LONGEST_NAME: Final = 1024
_LONGEST_PLACE: Final = 4096


def artifact_record(
    name: str, place: str, time: int, *, kind: str = "file", step: int | None = None, **fields: Any
) -> Event:
    """Return the event that records an artifact.

    Args:
        name: Name of the artifact.
        place: Path or address. Secrets in it are masked.
        time: Time in nanoseconds since the Unix epoch.
        kind: Type of the artifact, such as `model`.
        step: Step, or None.
        fields: Further fields: `size` in bytes, `files`, `digest`, `aliases`. None leaves a field out.
    """
    where = {"uri": mask_address(place)[:_LONGEST_PLACE]} if "://" in place else {"path": place[:_LONGEST_PLACE]}
    known: Mapping[str, Any] = {field: value for field, value in fields.items() if value is not None}
    label = name[:_LONGEST_NAME]
    body = {"name": label, "type": fit_label(kind) or "file", "aliases": [], **where, **known}
    return Event(
        ARTIFACT_EVENT, max(1, time), body, {MEDIA_KEY: label, **({} if step is None else {STEP_METRIC: step})}
    )
