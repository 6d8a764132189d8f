"""OpenTelemetry resources: attributes that describe a process, its node, and the launch of a run."""

from tensormeter.resource.describe import describe_launch, describe_node, describe_process, describe_rank

__all__ = ["describe_launch", "describe_node", "describe_process", "describe_rank"]
