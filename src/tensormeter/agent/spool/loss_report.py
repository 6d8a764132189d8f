"""Reports of losses: counts of lost items in the events that are sent to receivers.

A process's end event is encoded when the process ends. Items that the spool loses afterwards (through damage, or
because a receiver refuses them) are reported in another event of that process, once everything else is delivered. Each
event replaces the counts of the previous event, so a process's reports are never added up.
"""

import gzip
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.agent.spool.encoding import encode_log_request
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.conventions.semconv import (
    PROCESS_KIND,
    RUN_HEARTBEAT,
    RUN_ID,
    RUN_NAME,
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
)
from tensormeter.conventions.unicode_names import as_unicode
from tensormeter.exporter import Request
from tensormeter.otlp.batch import Event

__all__ = ["Report", "anonymous", "described_in", "due", "encode_report", "unreported"]

_NAMESPACE: Final = uuid.UUID("b1f3d0a2-5f57-5d0e-8f0c-3f7a0e6a9c55")


@dataclass(frozen=True)
class Report:
    """Losses that one process reports.

    Attributes:
        process: ID of the process.
        resource: Resource of the process, which is the source of its events.
        dropped: Number of points that the process itself could not record, by reason.
        reported: Number of items that the spool lost and this process reports, by reason.
    """

    process: str
    resource: Mapping[str, Any]
    dropped: Mapping[str, int] = field(default_factory=dict)
    reported: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Sums of `dropped` and `reported` by reason, for an event."""
        counts = dict(self.dropped)
        for reason, count in self.reported.items():
            counts[reason] = counts.get(reason, 0) + count
        return counts


def unreported(process: str, reports: Sequence[Report], losses: Mapping[str, int]) -> dict[str, int]:
    """Return the spool's losses that this process must report because no other process has, by reason.

    Args:
        process: ID of the process.
        reports: Reports of all processes.
        losses: Losses of the spool, by reason.
    """
    left = dict(losses)
    for report in reports:
        if report.process != process:
            for reason, count in report.reported.items():
                left[reason] = left.get(reason, 0) - count
    return {reason: count for reason, count in left.items() if count > 0}


def due(reports: Sequence[Report], losses: Mapping[str, int]) -> Report | None:
    """Return a new report for the process that reported last; None if receivers already have all losses.

    Args:
        reports: Reports so far, in order; not empty.
        losses: Losses of the spool, by reason.
    """
    last = reports[-1]
    counts = unreported(last.process, reports, losses)
    return None if counts == last.reported else replace(last, reported=counts)


def anonymous(project: str, run_id: str, name: str, host: str) -> Report:
    """Return an empty report for a run whose spool lists no processes, with an ID derived from run and host."""
    process = uuid.uuid5(_NAMESPACE, as_unicode(f"{project}/{run_id}/{host}")).hex
    resource = {
        "host.name": host,
        SERVICE_NAME: project,
        SERVICE_INSTANCE_ID: process,
        PROCESS_KIND: "node",
        RUN_ID: run_id,
        RUN_NAME: name,
    }
    return Report(process, resource)


def described_in(request: Request, host: str) -> Report | None:
    """Return an empty report for the run that a request belongs to; None if the request's body cannot be read."""
    try:
        body = gzip.decompress(request.body)
        if request.signal == "logs":
            resource = ExportLogsServiceRequest.FromString(body).resource_logs[0].resource
        else:
            resource = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].resource
    except Exception:  # protobuf may raise anything for a damaged body
        return None
    attributes = {item.key: item.value.string_value for item in resource.attributes}
    run_id = attributes.get(RUN_ID, "")
    name = attributes.get(RUN_NAME, run_id)
    return anonymous(attributes.get(SERVICE_NAME, ""), run_id, name, attributes.get("host.name", host))


def encode_report(report: Report) -> Encoded:
    """Encode a report as a heartbeat of an ended process. Heartbeats do not change the run's state."""
    event = Event(RUN_HEARTBEAT, time.time_ns(), {"state": "ended", "dropped": report.counts})
    return encode_log_request(report.resource, [event], Priority.ESSENTIAL)
