"""The source of telemetry (its project, run and process), derived from resource attributes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tensormeter.conventions.semconv import RANK, RUN_ATTEMPT, RUN_ID, RUN_NAME, SERVICE_INSTANCE_ID, SERVICE_NAME
from tensormeter.otlp.batch import Attribute
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.settings import IDENTIFIER

__all__ = ["Source", "identify"]

MAX_NAME: Final = 1024
"""Maximum number of characters in the name of a project, run, process, metric or event."""

MAX_RESOURCE_JSON: Final = 65_536
"""Maximum number of characters in a resource's attributes as JSON."""


@dataclass(frozen=True)
class Source:
    """One process of one run.

    Attributes:
        name: Name of the run; the run ID if the sender gave none.
        resource: All resource attributes, as canonical JSON.
        derived: Whether the run ID was derived from the resource because the sender did not send one.
        first: Whether the process is the run's first rank, or has no rank.
    """

    project: str
    run_id: str
    name: str
    process: str
    resource: str
    attempt: int = 1
    derived: bool = False
    first: bool = True

    @property
    def is_named(self) -> bool:
        """Whether the sender named the run. If not, the name that another process of the run has given stays."""
        return self.name != self.run_id


def identify(attributes: Mapping[str, Attribute]) -> Source | str:
    """Return the source that a resource describes, or the reason why the store refuses it.

    Senders that do not set a run ID get one run for each pair of `service.name` and `service.instance.id`. Without an
    instance ID, they get one run for each distinct resource.
    """
    resource = canonical_json(attributes)
    service = _text(attributes, SERVICE_NAME)
    instance = _text(attributes, SERVICE_INSTANCE_ID)
    project = service or "default"
    run_id = _text(attributes, RUN_ID)
    name = _text(attributes, RUN_NAME) or run_id or project
    derived = not run_id
    if derived:
        identity = canonical_json([service, instance]) if instance else resource
        run_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not IDENTIFIER.fullmatch(run_id):
        return "tensormeter.run.id must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    if max(map(len, (project, name, instance))) > MAX_NAME:
        return f"service.name, service.instance.id or tensormeter.run.name is longer than {MAX_NAME} characters"
    if len(resource) > MAX_RESOURCE_JSON:
        return f"resource attributes are longer than {MAX_RESOURCE_JSON} characters as JSON"
    attempt = attributes.get(RUN_ATTEMPT)
    number = attempt if isinstance(attempt, int) and 1 <= attempt < 1 << 31 else 1
    return Source(project, run_id, name, instance, resource, number, derived, attributes.get(RANK, 0) == 0)


def _text(attributes: Mapping[str, Attribute], key: str) -> str:
    value = attributes.get(key)
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical_json(value)
