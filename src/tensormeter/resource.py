"""Who is speaking: the OpenTelemetry resource of a training process."""

import os
import socket
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector

__all__ = ["describe_process"]


def describe_process(project: str, run_id: str, run_name: str, process: str, attempt: int = 1) -> Mapping[str, Any]:
    """Resource attributes, with the semantic conventions' names where there are any.

    `OTEL_RESOURCE_ATTRIBUTES` adds to them and cannot change what identifies the run.

    Args:
        project: Becomes `service.name`.
        run_id: Becomes `tensormeter.run.id`.
        run_name: Becomes `tensormeter.run.name`.
        process: Becomes `service.instance.id`; unique in the world.
        attempt: Becomes `tensormeter.run.attempt`.
    """
    return {
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        **OTELResourceDetector().detect().attributes,
        "service.name": project,
        "service.instance.id": process,
        "telemetry.sdk.name": "tensormeter",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": version("tensormeter"),
        "tensormeter.run.id": run_id,
        "tensormeter.run.name": run_name,
        "tensormeter.run.attempt": attempt,
    }
