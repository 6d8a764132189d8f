"""Settings from environment variables of OpenTelemetry and schedulers.

Each function returns None if its variable is unset or invalid, so that the next source of the setting applies. Invalid
variables also cause a warning.
"""

from typing import Final, Literal

from tensormeter.conventions.labels import LONGEST_LABEL, fit_label
from tensormeter.conventions.semconv import SERVICE_NAME
from tensormeter.environment import variables

__all__ = [
    "read_disabled",
    "read_export_interval",
    "read_histogram_aggregation",
    "read_restarts",
    "read_service_attribute",
    "read_service_name",
    "read_temporality",
]

_MOST_RESTARTS: Final = 1_000_000


def read_disabled(variable: str) -> Literal["disabled"] | None:
    """Return the mode `disabled` if the variable is true."""
    return "disabled" if variables.read_flag(variable) else None


def read_restarts(variable: str) -> int | None:
    """Return the attempt number, given a count of restarts. 0 is ignored: torchrun resets its count after a requeue."""
    restarts = variables.read_count(variable, _MOST_RESTARTS, "the attempt count of this machine")
    return restarts + 1 if restarts else None


def read_export_interval(variable: str) -> float | None:
    """Return the seconds between two exports, from a variable in milliseconds."""
    return variables.read_seconds(variable, 0.01, 3600, "the default")


def read_service_name(variable: str) -> str | None:
    """Return the project, derived from the service name."""
    return _as_project(variable, variables.read(variable))


def read_service_attribute(variable: str) -> str | None:
    """Return the project, derived from the resource attribute `service.name`."""
    return _as_project(variable, variables.read_attributes(variable).get(SERVICE_NAME, ""))


def read_temporality(variable: str) -> str | None:
    """Return the temporality of sums and histograms."""
    return variables.read_word(variable, ("cumulative", "delta", "lowmemory"), "cumulative")


def read_histogram_aggregation(variable: str) -> str | None:
    """Return the aggregation of histogram instruments."""
    words = ("explicit_bucket_histogram", "base2_exponential_bucket_histogram")
    return variables.read_word(variable, words, "explicit_bucket_histogram")


def _as_project(variable: str, name: str) -> str | None:
    """Convert a service name, which can be any string, to a project name."""
    project = fit_label(variables.mask(name))
    if name and project != name:
        expected = f"a name of at most {LONGEST_LABEL} characters without control characters"
        variables.ignore(variable, expected, f"the project {project!r}" if project else "the default")
    return project or None
