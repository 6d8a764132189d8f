"""The node, which samples all sensors of the machine."""

import functools
import time
from collections.abc import Mapping
from typing import Final

from tensormeter.otlp.batch import Attribute, Batch
from tensormeter.sensors.gpu.amd import AmdSensor
from tensormeter.sensors.gpu.nvidia import NvidiaSensor
from tensormeter.sensors.host.container import ContainerSensor
from tensormeter.sensors.host.filesystem import FilesystemSensor
from tensormeter.sensors.host.host import HostSensor
from tensormeter.sensors.host.process import ProcessSensor
from tensormeter.sensors.sampler import Sampler
from tensormeter.sensors.targets import Watch

__all__ = ["Node"]

_SAMPLES_A_REQUEST: Final = 10
_LONGEST_WAIT: Final = 30.0
"""Maximum seconds to collect points for one request."""

_FIRST_WAIT: Final = 2.0
"""Maximum seconds to wait until all sensors have taken their first sample. A driver may be slow to start."""


class Node:
    """Sampler of all sensors, which runs until it is stopped. Not thread-safe. Only `stop` blocks."""

    def __init__(self, resource: Mapping[str, Attribute], watch: Watch, *, interval: float, delay: float) -> None:
        """Start sampling.

        Args:
            resource: Resource of the node.
            watch: Processes and folders to observe. The caller updates them.
            interval: Sampling interval in seconds.
            delay: Minimum time between two batches in seconds.
        """
        self.watch = watch
        self._resource = resource
        self._delay = max(delay, min(_SAMPLES_A_REQUEST * interval, _LONGEST_WAIT))
        self._first = True
        self._due = time.monotonic() + _FIRST_WAIT
        self._samplers = [
            Sampler("host", HostSensor, interval),
            Sampler("filesystem", functools.partial(FilesystemSensor, watch), interval),
            Sampler("container", ContainerSensor, interval),
            Sampler("process", functools.partial(ProcessSensor, watch), interval),
            Sampler("nvidia", functools.partial(NvidiaSensor, watch), interval),
            Sampler("amd", functools.partial(AmdSensor, watch), interval),
        ]

    def take(self, *, flush: bool, most_points: int) -> Batch | None:
        """Return the collected points if a batch is due, otherwise None.

        Args:
            flush: Whether to return the points even if no batch is due.
            most_points: Number of buffered points at which a batch is due immediately.
        """
        for sampler in self._samplers:
            sampler.report_if_stuck()
        now = time.monotonic()
        points = sum(sampler.columns.points for sampler in self._samplers)
        ready = self._first and all(sampler.samples or sampler.over for sampler in self._samplers)
        if not (flush or ready or now >= self._due or points >= most_points):
            return None
        self._first = False
        self._due = now + self._delay
        series = [series for sampler in self._samplers for series in sampler.take()]
        return Batch(self._resource, series) if series else None

    def stop(self, timeout: float = 0.0) -> None:
        """Stop sampling. Points from completed samples can still be taken.

        Args:
            timeout: Maximum total time, in seconds, to wait for samples in progress. Default: 0.
        """
        deadline = time.monotonic() + timeout
        for sampler in self._samplers:
            sampler.stop(0)
        for sampler in self._samplers:
            sampler.stop(max(0.0, deadline - time.monotonic()))
