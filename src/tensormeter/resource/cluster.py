"""Where a process stands in its job: rank and world size, and what the scheduler calls the job."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.semconv import LOCAL_RANK, LOCAL_WORLD_SIZE, RANK, WORLD_SIZE
from tensormeter.environment.variables import read_count

__all__ = ["describe_cluster", "describe_launch", "describe_rank"]

_RANK: Final = {
    RANK: ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"),
    LOCAL_RANK: ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"),
    WORLD_SIZE: ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"),
    LOCAL_WORLD_SIZE: ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}
"""torchrun's names (which torch.distributed also reads), Open MPI's, MPICH's, Slurm's; the first that can be used holds."""

_LONGEST_TEXT: Final = 1024
"""Characters of a name. Those of Slurm and Kubernetes are shorter."""

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
"""Variables that are the same for all ranks of one launch and differ from those of other launches. Addresses of a master are not
among them: ranks may name it differently, and its port is mostly the default.
"""

_NO_LAUNCH: Final = frozenset({"", "none", "default"})
"""Ids that torchrun gives by itself."""

_LONGEST_LAUNCH: Final = 256

_KUBERNETES: Final = {
    "k8s.pod.name": ("K8S_POD_NAME", "POD_NAME", "HOSTNAME"),
    "k8s.pod.uid": ("K8S_POD_UID", "POD_UID"),
    "k8s.namespace.name": ("K8S_NAMESPACE_NAME", "POD_NAMESPACE"),
    "k8s.node.name": ("K8S_NODE_NAME", "NODE_NAME"),
    "k8s.container.name": ("K8S_CONTAINER_NAME", "CONTAINER_NAME"),
    "k8s.job.name": ("JOB_NAME",),
}
"""Names by which pods are usually told who they are (the downward API); only a pod's host name is always there."""

_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def describe_rank() -> dict[str, int]:
    """Rank and world size of this process, over all and on the node, from the first variable of each that has a number."""
    found = {}
    for name, variables in _RANK.items():
        for variable in variables:
            number = read_count(variable, _MOST_RANKS, "the next variable that tells it, or nothing,")
            if number is not None:
                found[name] = number
                break
    return found


def describe_cluster(environment: Mapping[str, str], namespace: Path = _NAMESPACE) -> dict[str, Any]:
    """The job, as torchrun, Slurm and Kubernetes name it.

    Args:
        environment: Of the process.
        namespace: The file in which Kubernetes tells pods their namespace.
    """
    attributes: dict[str, Any] = _lookup(environment, _TEXTS)
    if "KUBERNETES_SERVICE_HOST" in environment:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # the pod may have no service account
            attributes["k8s.namespace.name"] = namespace.read_text().strip()
        attributes |= _lookup(environment, _KUBERNETES)
    return attributes


def describe_launch(environment: Mapping[str, str]) -> str:
    """What the ranks of this launch have in common and no other launch has; "" if no launcher names it."""
    parts = []
    for launcher, (name, *counts) in _LAUNCHES.items():
        if (launch := environment.get(name, "").strip()).lower() not in _NO_LAUNCH:
            parts.append(
                " ".join([launcher, launch, *(environment.get(count, "").strip() for count in counts)]).strip()
            )
    return ", ".join(parts)[:_LONGEST_LAUNCH]


def _lookup(environment: Mapping[str, str], table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found = {name: next(filter(None, map(environment.get, variables)), "") for name, variables in table.items()}
    return {name: text[:_LONGEST_TEXT] for name, text in found.items() if text}
