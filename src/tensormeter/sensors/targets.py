"""What the sensors know of the run on their node."""

from dataclasses import dataclass, field

__all__ = ["TrainingProcess", "Watch"]


@dataclass(frozen=True)
class TrainingProcess:
    """A process of the run on this node.

    Attributes:
        id: Its `service.instance.id`.
        pid: Its process id, as this process sees it.
        began: Unix time when it was certainly running already, to tell it from a later process with the same id.
        visible_gpus: Its `CUDA_VISIBLE_DEVICES` (or AMD's equivalent), or None where it has none.
    """

    id: str
    pid: int
    began: float
    visible_gpus: str | None = None


@dataclass
class Watch:
    """What the agent tells the sensors. It replaces the tuples, they read them: no lock.

    Attributes:
        processes: The training processes that run now.
        folders: Where the run writes; the space on their file systems is watched.
    """

    processes: tuple[TrainingProcess, ...] = ()
    folders: tuple[str, ...] = field(default=())
