"""Names of our events, metrics and attributes that several parts of tensormeter use, each defined once.

A name that only one module uses, such as a sensor's instrument, is defined in that module. Names from OpenTelemetry's
semantic conventions are used unchanged.
"""

from typing import Final

__all__ = [
    "ALERT_EVENT",
    "ALERT_KIND",
    "ALERT_SOURCE",
    "ARTIFACT_EVENT",
    "AUDIO_EVENT",
    "DROPPED",
    "FIGURE_EVENT",
    "GPU_DRIVER_VERSION",
    "GPU_MODELS",
    "GPU_VISIBLE_DEVICES",
    "HTML_EVENT",
    "IMAGES_EVENT",
    "IMAGE_EVENT",
    "LAUNCH_ID",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LOG_STREAM",
    "MEDIA_KEY",
    "PROCESS_END",
    "PROCESS_ID",
    "PROCESS_KIND",
    "PROCESS_ROLE",
    "RANK",
    "RUN_ATTEMPT",
    "RUN_ATTEMPT_PROVISIONAL",
    "RUN_ATTEMPT_UNSETTLED",
    "RUN_CODE",
    "RUN_CONFIG",
    "RUN_END",
    "RUN_HEARTBEAT",
    "RUN_ID",
    "RUN_NAME",
    "RUN_START",
    "SENSOR",
    "SERVICE_INSTANCE_ID",
    "SERVICE_NAME",
    "STEP_METRIC",
    "TABLE_EVENT",
    "TEXT_EVENT",
    "VIDEO_EVENT",
    "WORLD_SIZE",
]

# Events.
RUN_START: Final = "tensormeter.run.start"
"""A process has joined the run. The body contains its configuration."""
RUN_CONFIG: Final = "tensormeter.run.config"
"""The configuration, the summary or the definitions of metrics have changed."""
RUN_CODE: Final = "tensormeter.run.code"
"""The code of the run: commit, uncommitted changes, source of the script, installed packages."""
RUN_HEARTBEAT: Final = "tensormeter.run.heartbeat"
"""An idle process is alive. The body contains its drop counts."""
RUN_END: Final = "tensormeter.run.end"
"""The run has ended in this process. The body contains the run's state."""
PROCESS_END: Final = "tensormeter.process.end"
"""A process of the run has ended, but the run has not."""
ALERT_EVENT: Final = "tensormeter.alert"
ARTIFACT_EVENT: Final = "tensormeter.artifact"
"""A file, folder or address that the run has written, such as a checkpoint. Its contents are not part of the event."""
AUDIO_EVENT: Final = "tensormeter.audio"
FIGURE_EVENT: Final = "tensormeter.figure"
"""A Plotly figure. The body contains its JSON."""
HTML_EVENT: Final = "tensormeter.html"
IMAGE_EVENT: Final = "tensormeter.image"
IMAGES_EVENT: Final = "tensormeter.images"
"""Several images under one key."""
TABLE_EVENT: Final = "tensormeter.table"
TEXT_EVENT: Final = "tensormeter.text"
VIDEO_EVENT: Final = "tensormeter.video"

# Attributes of events.
MEDIA_KEY: Final = "tensormeter.key"
"""Key under which a media item was logged."""
LOG_STREAM: Final = "log.iostream"
"""Console stream of a log line: `stdout` or `stderr`."""
ALERT_KIND: Final = "tensormeter.alert.kind"
ALERT_SOURCE: Final = "tensormeter.alert.source"

# Metrics.
STEP_METRIC: Final = "tensormeter.step"
"""Gauge with the step of each row; also the attribute that contains the step of an event."""
DROPPED: Final = "tensormeter.dropped"
"""Counter of dropped points, by reason."""

# Attributes of resources: the run.
SERVICE_NAME: Final = "service.name"
"""Name of the project."""
SERVICE_INSTANCE_ID: Final = "service.instance.id"
"""Globally unique ID of the process."""
RUN_ID: Final = "tensormeter.run.id"
RUN_NAME: Final = "tensormeter.run.name"
RUN_ATTEMPT: Final = "tensormeter.run.attempt"
"""Number of the attempt, starting at 1."""
RUN_ATTEMPT_PROVISIONAL: Final = "tensormeter.run.attempt.provisional"
"""True if neither this machine nor a server could determine whether there were earlier attempts."""
RUN_ATTEMPT_UNSETTLED: Final = "tensormeter.run.attempt.unsettled"
"""Basis of the attempt's number, passed from a training process to its agent. It is never delivered."""

# Attributes of resources: the process.
PROCESS_KIND: Final = "tensormeter.process.kind"
"""`training`, or `node` for the process that represents a node and its statistics."""
RANK: Final = "tensormeter.rank"
LOCAL_RANK: Final = "tensormeter.local_rank"
WORLD_SIZE: Final = "tensormeter.world_size"
LOCAL_WORLD_SIZE: Final = "tensormeter.local_world_size"
LAUNCH_ID: Final = "tensormeter.launch.id"
"""ID that all ranks of a launch, and no others, share."""
GPU_DRIVER_VERSION: Final = "tensormeter.gpu.driver_version"
GPU_MODELS: Final = "tensormeter.gpu.models"
GPU_VISIBLE_DEVICES: Final = "tensormeter.gpu.visible_devices"

# Attributes of series.
PROCESS_ID: Final = "tensormeter.process.id"
"""`service.instance.id` of the training process that a statistic describes."""
PROCESS_ROLE: Final = "tensormeter.process.role"
"""`trainer`, `children` (all child processes of a trainer together) or `agent`."""
SENSOR: Final = "tensormeter.sensor"
