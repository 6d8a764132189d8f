"""OpenTelemetry resources: attributes that describe a process, its node and its launch."""

from tensormeter.resource.describe import describe_launch, describe_node, describe_process, describe_rank

__all__ = ["describe_launch", "describe_node", "describe_process", "describe_rank"]
