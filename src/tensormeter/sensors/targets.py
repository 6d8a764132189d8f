"""The processes and folders of a run that sensors observe."""

from dataclasses import dataclass, field

__all__ = ["TrainingProcess", "Watch"]


@dataclass(frozen=True)
class TrainingProcess:
    """A training process of the run on this node.

    Attributes:
        id: The process's `service.instance.id`.
        pid: Process id, as seen by the agent.
        began: Unix time at which the process was already running, to distinguish it from a later process with the same pid.
        visible_gpus: The process's `CUDA_VISIBLE_DEVICES` (or AMD's equivalent), or None if it is not set.
    """

    id: str
    pid: int
    began: float
    visible_gpus: str | None = None


@dataclass
class Watch:
    """The current targets of the sensors. The agent replaces the tuples and the sensors read them, so no lock is needed.

    Attributes:
        processes: Running training processes.
        folders: Folders that the run writes to, whose file systems are observed.
    """

    processes: tuple[TrainingProcess, ...] = ()
    folders: tuple[str, ...] = field(default=())
