"""The object behind `SummaryWriter.file_writer`, for scripts that pass TensorBoard's messages to it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensormeter.tensorboard.events import record_event, record_summary

if TYPE_CHECKING:
    from tensormeter.tensorboard.writer import SummaryWriter

__all__ = ["FileWriter"]


class FileWriter:
    """A recorder of TensorBoard's messages `Event` and `Summary`, with the methods of torch's class of this name.

    Attributes:
        event_writer: This object, because torch's class passes messages on to another one.
    """

    def __init__(self, writer: "SummaryWriter", step_of: Callable[[str, Any], int]) -> None:
        """
        Args:
            writer: Summary writer whose run receives the values.
            step_of: Function that returns the step for a tag and a step that may be None.
        """
        self.event_writer = self
        self._writer = writer
        self._step_of = step_of

    def get_logdir(self) -> str:
        return self._writer.get_logdir()

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        """Record the values of an event."""
        joined = self._writer._joined()
        if event.WhichOneof("what") == "summary":
            step = step if step is not None else event.step
            self.add_summary(event.summary, step, walltime)
        else:
            record_event(joined.run, event)

    def add_summary(self, summary: Any, global_step: int | None = None, walltime: float | None = None) -> None:
        """Record the values of a summary. Without a step, each tag counts its steps, as in `SummaryWriter`."""
        if isinstance(summary, bytes):
            from tensorboard.compat.proto.summary_pb2 import Summary

            summary = Summary.FromString(summary)
        joined = self._writer._joined()
        record_summary(joined.run, summary, lambda tag: self._step_of(tag, global_step), joined.find_prefix())

    def add_graph(self, graph_profile: Any, walltime: float | None = None) -> None:
        self._writer.add_graph(graph_profile)

    def add_onnx_graph(self, graph: Any, walltime: float | None = None) -> None:
        self._writer.add_onnx_graph(graph)

    def flush(self) -> None:
        """Do nothing: the agent delivers values as they come."""

    def close(self) -> None:
        """Do nothing: `SummaryWriter.close` finishes the run."""

    def reopen(self) -> None:
        """Do nothing: a closed writer opens its run again when it is used."""
