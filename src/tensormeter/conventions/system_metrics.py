"""Names of metrics that sensors and libraries record, rather than the training script."""

from typing import Final

__all__ = ["SYSTEM_PREFIXES"]

SYSTEM_PREFIXES: Final = (
    "container.",
    "cpython.",
    "gc.",
    "hw.",
    "k8s.",
    "phase.",
    "process.",
    "system.",
    "tensormeter.",
)
"""Beginnings of the names. The page shows these metrics in a separate pane."""
