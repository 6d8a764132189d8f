"""The resource of a process of an imported run."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from tensormeter.conventions.labels import fit_label
from tensormeter.conventions.semconv import (
    PROCESS_KIND,
    RANK,
    RUN_ATTEMPT,
    RUN_ID,
    RUN_NAME,
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
)
from tensormeter.importers.plain_values import plain_document
from tensormeter.otlp.batch import Attribute
from tensormeter.redaction import mask_config
from tensormeter.settings import IDENTIFIER

__all__ = ["run_resource"]

_LONGEST_NAME: Final = 1024


def run_resource(
    project: str, run_id: str, name: str, further: Mapping[str, Any], *, rank: int | None, attempt: int, process: str
) -> dict[str, Attribute]:
    """Return the resource of a process. Secrets in it are masked. See `RunRequests.start` for the arguments.

    Its `service.instance.id`, the ID of the process, is derived from project, run, process, rank and attempt.
    """
    run_id = _identifier(run_id)
    identity = "\0".join((project, run_id, process, str(rank), str(attempt)))
    attributes, _ = mask_config(plain_document(further))
    return {
        **{name: value for name, value in attributes.items() if _is_attribute(value)},
        SERVICE_NAME: fit_label(project) or "imported",
        SERVICE_INSTANCE_ID: hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:32],
        PROCESS_KIND: "training",
        RUN_ID: run_id,
        RUN_NAME: fit_label(name, _LONGEST_NAME) or run_id,
        RUN_ATTEMPT: attempt,
        **({} if rank is None else {RANK: rank}),
    }


def _identifier(run_id: str) -> str:
    """Return a permitted run ID: the given one, or a readable part of it with a digest."""
    if IDENTIFIER.fullmatch(run_id):
        return run_id
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in run_id).strip("-")
    digest = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{readable[:100]}-{digest}".lstrip("-")


def _is_attribute(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, bool | int | float | str)
