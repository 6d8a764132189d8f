"""The OpenTelemetry resources of a training process and of its node.

Attributes follow the semantic conventions where these define a name. This module reads only files, the environment and
package metadata. It does not import torch, start a process, or use the network or a driver.
"""

import logging
import os
import platform
import socket
import sys
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tensormeter.conventions.semconv import (
    GPU_DRIVER_VERSION,
    GPU_MODELS,
    GPU_VISIBLE_DEVICES,
    LAUNCH_ID,
    PROCESS_KIND,
    RUN_ATTEMPT,
    RUN_ID,
    RUN_NAME,
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
)
from tensormeter.environment.variables import read_attributes, warn_once
from tensormeter.redaction import environment_secrets, mask_config
from tensormeter.resource.cluster import describe_cluster, describe_launch, describe_rank
from tensormeter.resource.command import mask_secrets
from tensormeter.resource.revision import describe_revision

__all__ = ["describe_launch", "describe_node", "describe_process", "describe_rank"]

logger: Final = logging.getLogger("tensormeter")

_NODE_NAMESPACE: Final = uuid.UUID("6f0d5c1e-6a0c-5d0f-9a51-2f5c3f0e7a4d")

_NODE_PREFIXES: Final = ("host.", "os.", "service.", "telemetry.", "tensormeter.slurm.job.", "k8s.")
_NODE_ATTRIBUTES: Final = (
    RUN_ID,
    RUN_NAME,
    GPU_MODELS,
    GPU_DRIVER_VERSION,
)

_MOST_ATTRIBUTE_BYTES: Final = 16_384
"""Maximum bytes of attributes from the environment. Our server, for example, limits a resource to 64 KiB of JSON."""

_IDENTITY: Final = (SERVICE_NAME, RUN_ID, "host.name", "host.id")
"""Attributes that identify a node. Containers may share a `host.id`, and machines without a network a `host.name`."""

_PACKAGES: Final = ("torch", "lightning", "transformers", "jax")
_LONGEST_DEVICES: Final = 1024
_PROC_NVIDIA: Final = Path("/proc/driver/nvidia")


def describe_process(
    project: str,
    run_id: str,
    run_name: str,
    process: str,
    *,
    attempt: int = 1,
    given: Mapping[str, Any] | None = None,
    command: bool = True,
) -> Mapping[str, Any]:
    """Describe this process as a resource.

    `OTEL_RESOURCE_ATTRIBUTES` adds attributes, but cannot change those that identify the run. A `service.instance.id`
    in it becomes `tensormeter.service.instance.id`: all processes of a run inherit the variable, and points of
    processes with the same ID would replace each other. Secrets in added attributes are masked, as in the command line.

    Args:
        project: Project, which becomes `service.name`.
        run_id: Run ID, which becomes `tensormeter.run.id`.
        run_name: Run name, which becomes `tensormeter.run.name`.
        process: Globally unique ID of the process, which becomes `service.instance.id`.
        attempt: Number of the attempt, which becomes `tensormeter.run.attempt`.
        given: Additional attributes, which cannot change those that identify the run.
        command: Whether to include the command line, with secrets masked.
    """
    detected = {
        **_described(_host),
        **_described(_python),
        **_described(_gpus),
        **_described(describe_revision),
        **_described(lambda: describe_cluster(os.environ)),
        **describe_rank(),
        **({LAUNCH_ID: launch} if (launch := describe_launch(os.environ)) else {}),
        **(_described(_command) if command else {}),
    }
    added, _ = mask_config({**_from_environment(detected), **(given or {})}, environment_secrets(os.environ))
    return {
        **detected,
        **added,
        SERVICE_NAME: project,
        SERVICE_INSTANCE_ID: process,
        "telemetry.sdk.name": "tensormeter",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": version("tensormeter"),
        PROCESS_KIND: "training",
        RUN_ID: run_id,
        RUN_NAME: run_name,
        RUN_ATTEMPT: attempt,
    }


def _described(describe: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the attributes from `describe`, or none if it fails, because failures must not prevent recording."""
    try:
        return describe()
    except Exception as error:
        logger.debug("%r failed; its attributes are missing from the resource", describe, exc_info=error)
        return {}


def _from_environment(detected: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes from `OTEL_RESOURCE_ATTRIBUTES`.

    An attribute with the name of a detected one is left out, with a warning, unless the detected value is a string.
    """
    variable = "OTEL_RESOURCE_ATTRIBUTES"
    attributes: dict[str, str] = {}
    room = _MOST_ATTRIBUTE_BYTES
    for name, value in read_attributes(variable).items():
        room -= len(f"{name}{value}".encode("utf-8", "surrogatepass"))
        if room < 0:
            warn_once(
                variable, f"longer than {_MOST_ATTRIBUTE_BYTES} bytes; ignoring {name!r} and all attributes after it"
            )
            break
        if not isinstance(detected.get(name, ""), str):
            warn_once(variable, f"{name} is not text; using the detected value")
        else:
            attributes[name] = value
    if instance := attributes.pop(SERVICE_INSTANCE_ID, ""):
        attributes["tensormeter.service.instance.id"] = instance
    return attributes


def describe_node(process: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a node as a process of the run, based on the resource of a training process on the node.

    Args:
        process: Resource from `describe_process`.

    Returns:
        Attributes that all processes of the run on this node share. `service.instance.id` is always the same for the
        same project, run and host, so a restarted agent continues the same series.
    """
    common = {
        name: value for name, value in process.items() if name.startswith(_NODE_PREFIXES) or name in _NODE_ATTRIBUTES
    }
    identity = "/".join(str(process.get(name, "")) for name in _IDENTITY)
    return {
        **common,
        SERVICE_INSTANCE_ID: uuid.uuid5(_NODE_NAMESPACE, identity).hex,
        PROCESS_KIND: "node",
    }


def _host() -> Mapping[str, Any]:
    system = platform.uname()
    attributes = {
        "host.name": socket.gethostname(),
        "host.arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(system.machine, system.machine),
        "host.id": _first_line(Path("/etc/machine-id")),
        "os.type": system.system.lower(),
        "os.version": system.release,
        "os.description": _os_name(),
    }
    return {name: value for name, value in attributes.items() if value}


def _python() -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "process.pid": os.getpid(),
        "process.parent_pid": os.getppid(),
        "process.executable.path": sys.executable,
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        "process.working_directory": _working_directory(),
    }
    for package in _PACKAGES:
        try:
            attributes[f"tensormeter.{package}.version"] = version(package)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if isinstance(release := getattr(torch, "__version__", None), str):
        attributes["tensormeter.torch.version"] = str(
            release
        )  # with its build, as in 2.13.0+cu130, which package metadata omits
    for name, module in (("cuda", "cuda"), ("hip", "hip")):
        release = getattr(getattr(torch, "version", None), module, None)
        if isinstance(release, str):
            attributes[f"tensormeter.torch.{name}.version"] = release
    return {name: value for name, value in attributes.items() if value}


def _gpus() -> Mapping[str, Any]:
    """Return the GPUs' attributes. They come from the driver's files, because CUDA queries would initialize CUDA."""
    attributes: dict[str, Any] = {}
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if variable in os.environ:
            attributes[GPU_VISIBLE_DEVICES] = os.environ[variable][:_LONGEST_DEVICES]
            break
    models = []
    for path in sorted(_PROC_NVIDIA.glob("gpus/*/information")):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        models.append(fields.get("Model", "").strip())
    if models:
        attributes[GPU_MODELS] = models
    driver = _first_line(_PROC_NVIDIA / "version").partition("Kernel Module")[2].split()
    numbers = [word for word in driver if word[:1].isdigit()]
    if numbers:
        attributes[GPU_DRIVER_VERSION] = numbers[0]
    return attributes


def _command() -> Mapping[str, Any]:
    """Return the original command line, including the interpreter and its options, with secrets masked."""
    return {"process.command_args": mask_secrets(list(sys.orig_argv) or list(getattr(sys, "argv", ())), os.environ)}


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.platform()


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""
