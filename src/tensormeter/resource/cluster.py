"""Attributes of a process within its job: its rank, the world size, and the scheduler's names for the job."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.semconv import LOCAL_RANK, LOCAL_WORLD_SIZE, RANK, WORLD_SIZE
from tensormeter.environment.variables import read_count

__all__ = ["describe_cluster", "describe_launch", "describe_rank"]

_RANK: Final = {
    RANK: ("RANK", "TENSORMETER_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"),
    LOCAL_RANK: (
        "LOCAL_RANK",
        "TENSORMETER_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "MPI_LOCALRANKID",
        "SLURM_LOCALID",
    ),
    WORLD_SIZE: ("WORLD_SIZE", "TENSORMETER_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"),
    LOCAL_WORLD_SIZE: (
        "LOCAL_WORLD_SIZE",
        "TENSORMETER_LOCAL_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MPI_LOCALNRANKS",
    ),
}
"""Variables of torchrun (and torch.distributed), Open MPI, MPICH and Slurm. The first valid value is used.

Ours are for processes that inherit the variables of the launcher that started their parent, such as Ray workers in a Slurm job.
torchrun, which such a process may start, takes precedence.
"""

_LONGEST_TEXT: Final = 1024
"""Maximum length of a name in characters. Slurm and Kubernetes names are shorter."""

_MOST_RANKS: Final = 1 << 31

_TEXTS: Final = {
    "tensormeter.torchrun.run_id": ("TORCHELASTIC_RUN_ID",),
    "tensormeter.torchrun.restart_count": ("TORCHELASTIC_RESTART_COUNT",),
    "tensormeter.slurm.job.id": ("SLURM_JOB_ID",),
    "tensormeter.slurm.job.name": ("SLURM_JOB_NAME",),
    "tensormeter.slurm.job.partition": ("SLURM_JOB_PARTITION",),
    "tensormeter.slurm.job.array.id": ("SLURM_ARRAY_JOB_ID",),
    "tensormeter.slurm.job.array.task": ("SLURM_ARRAY_TASK_ID",),
    "tensormeter.slurm.job.restart_count": ("SLURM_RESTART_COUNT",),
    "tensormeter.slurm.step.id": ("SLURM_STEP_ID",),
    "tensormeter.slurm.node.name": ("SLURMD_NODENAME",),
}

_LAUNCHES: Final = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    "slurm": ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    "pmix": ("PMIX_NAMESPACE",),
    "pbs": ("PBS_JOBID",),
    "lsf": ("LSB_JOBID",),
    "flux": ("FLUX_JOB_ID",),
}
"""Variables with the same value in all ranks of a launch, and another value in every other launch.

The master's address is not included, because ranks may write it differently and its port is usually the default.
"""

_NO_LAUNCH: Final = frozenset({"", "none", "default"})
"""Default IDs that torchrun uses, which do not identify a launch."""

_LONGEST_LAUNCH: Final = 256

_KUBERNETES: Final = {
    "k8s.pod.name": ("K8S_POD_NAME", "POD_NAME", "HOSTNAME"),
    "k8s.pod.uid": ("K8S_POD_UID", "POD_UID"),
    "k8s.namespace.name": ("K8S_NAMESPACE_NAME", "POD_NAMESPACE"),
    "k8s.node.name": ("K8S_NODE_NAME", "NODE_NAME"),
    "k8s.container.name": ("K8S_CONTAINER_NAME", "CONTAINER_NAME"),
    "k8s.job.name": ("JOB_NAME",),
}
"""Variables commonly set through the Kubernetes downward API. Only a pod's host name is always set."""

_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def describe_rank() -> dict[str, int]:
    """Return this process's rank and the world size, in the job and on the node, each from the first valid variable."""
    attributes = {}
    for name, variables in _RANK.items():
        for variable in variables:
            number = read_count(variable, _MOST_RANKS, "the next variable for this attribute, if any,")
            if number is not None:
                attributes[name] = number
                break
    return attributes


def describe_cluster(environment: Mapping[str, str], namespace: Path = _NAMESPACE) -> dict[str, Any]:
    """Return the job's attributes, as set by torchrun, Slurm and Kubernetes.

    Args:
        environment: Environment variables of the process.
        namespace: File in which Kubernetes stores a pod's namespace.
    """
    attributes: dict[str, Any] = _lookup(environment, _TEXTS)
    if "KUBERNETES_SERVICE_HOST" in environment:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # the pod may have no service account
            attributes["k8s.namespace.name"] = namespace.read_text().strip()
        attributes |= _lookup(environment, _KUBERNETES)
    return attributes


def describe_launch(environment: Mapping[str, str]) -> str:
    """Return an ID that all ranks of this launch, and no others, share; empty if no launcher sets one."""
    parts = []
    for launcher, (name, *counts) in _LAUNCHES.items():
        if (launch := environment.get(name, "").strip()).lower() not in _NO_LAUNCH:
            parts.append(
                " ".join([launcher, launch, *(environment.get(count, "").strip() for count in counts)]).strip()
            )
    return ", ".join(parts)[:_LONGEST_LAUNCH]


def _lookup(environment: Mapping[str, str], table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    texts = {name: next(filter(None, map(environment.get, variables)), "") for name, variables in table.items()}
    return {name: text[:_LONGEST_TEXT] for name, text in texts.items() if text}
