"""The processes and folders of a run that sensors observe."""

from dataclasses import dataclass, field

__all__ = ["TrainingProcess", "Watch"]


@dataclass(frozen=True)
class TrainingProcess:
    """A training process of the run on this node.

    Attributes:
        id: ID of the process, sent as `service.instance.id`.
        pid: Process ID, as seen by the agent.
        began: Unix time at which the process was already running. It distinguishes the process from a later process
            with the same PID.
        visible_gpus: `CUDA_VISIBLE_DEVICES` of the process, or AMD's equivalent; None if it is not set.
    """

    id: str
    pid: int
    began: float
    visible_gpus: str | None = None


@dataclass
class Watch:
    """Current targets of the sensors. No lock is needed, because the agent always replaces whole tuples.

    Attributes:
        processes: Running training processes.
        folders: Folders that the run writes to. Their file systems are observed.
    """

    processes: tuple[TrainingProcess, ...] = ()
    folders: tuple[str, ...] = field(default=())
