"""Collection of node metrics, which the agent samples once per run and node, regardless of the number of ranks."""

import time
from collections.abc import Collection
from typing import Final

from tensormeter.agent.ingest.ring_drainer import RingDrainer
from tensormeter.agent.spool.encoding import encode_metric_request
from tensormeter.agent.spool.errors import SpoolDamagedError
from tensormeter.agent.spool.request import Encoded, Priority
from tensormeter.agent.spool.spool import Spool
from tensormeter.conventions.semconv import GPU_VISIBLE_DEVICES, SERVICE_INSTANCE_ID
from tensormeter.errors import SpoolError
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import Batch
from tensormeter.resource import describe_node
from tensormeter.ring.format import HeaderWord, State
from tensormeter.sensors.node import Node
from tensormeter.sensors.targets import TrainingProcess, Watch
from tensormeter.settings import Settings

__all__ = ["NodeMetrics"]

logger: Final = get_logger("tensormeter.agent")

_GZIP_LEVEL: Final = 6
"""Compression level. Names and attributes repeat in every point, so bodies shrink to a twentieth of their size."""

_RETRY_DELAY: Final = 1.0
_STOP_TIMEOUT: Final = 0.5


class NodeMetrics:
    """Sampler of node metrics while the run has an open training process on this node.

    Only the agent's main thread may use it.
    """

    def __init__(self, spool: Spool, settings: Settings) -> None:
        self._spool = spool
        self._settings = settings
        self._metrics_to = settings.takers("metrics", settings.exporters)
        self._watch = Watch(folders=(str(settings.directory),))
        self._node: Node | None = None
        self._process = ""
        self._waiting: Encoded | None = None
        self._retry_at = 0.0

    def advance(self, drains: Collection[RingDrainer], *, flush: bool) -> bool:
        """Update the list of running processes, and move samples to the spool.

        Call this before advancing the drainers, so that the last metrics enter the spool before the run's end event.

        Args:
            drains: Drainers of all processes of the run.
            flush: Whether to move samples even if they do not fill a request.

        Returns:
            Whether requests were added to the spool.
        """
        running = [drain for drain in drains if _is_training(drain)]
        self._watch.processes = tuple(_describe(drain) for drain in running)
        if self._node is None and running and not flush:
            self._start(running[0])
        if self._node is not None and self._waiting is None:
            over = flush or not running
            self._encode(self._node.take(flush=over, most_points=self._settings.max_export_batch_size))
            if over:
                self._node.stop()
                self._node = None
        return self._waiting is not None and self._put(self._waiting)

    def stop(self) -> None:
        """Stop sampling. Samples that are not yet in the spool are lost."""
        if self._node is not None:
            self._node.stop(_STOP_TIMEOUT)
            self._node = None

    def _start(self, drain: RingDrainer) -> None:
        resource = describe_node(drain.resource)
        self._process = str(resource[SERVICE_INSTANCE_ID])
        settings = self._settings
        self._node = Node(resource, self._watch, interval=settings.sample_interval, delay=settings.schedule_delay)

    def _encode(self, batch: Batch | None) -> None:
        if batch is not None:
            self._waiting = encode_metric_request(batch, Priority.SYSTEM, level=_GZIP_LEVEL)

    def _put(self, encoded: Encoded) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._spool.put([encoded], self._metrics_to, self._process, {}, started=True, ended=True)
        except SpoolDamagedError:
            raise
        except SpoolError as error:
            if not self._retry_at:
                logger.error("%s; system metrics are paused until this is fixed", error)
            self._retry_at = time.monotonic() + _RETRY_DELAY
            return False
        self._waiting, self._retry_at = None, 0.0
        return True


def _is_training(drain: RingDrainer) -> bool:
    """Return whether a drainer's process is a training process, not a child, and has not finished or died."""
    return not drain.child and drain.ring.state is State.OPEN and drain.ring.writer_alive()


def _describe(drain: RingDrainer) -> TrainingProcess:
    words = drain.ring.words
    visible = drain.resource.get(GPU_VISIBLE_DEVICES)
    return TrainingProcess(
        drain.ring.process,
        words[HeaderWord.WRITER_PID],
        words[HeaderWord.CREATED] / 1e9,
        None if visible is None else str(visible),
    )
