"""Packages that destinations need, looked for without importing them: an import may take seconds, and the agent does it."""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Final

__all__ = ["PACKAGES", "problem_with"]

PACKAGES: Final = {
    "grpc": ("grpcio",),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "prometheus_client": ("prometheus_client",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""Names of packages to import, and the distributions of which one installs it."""


def problem_with(package: str) -> str:
    """Why importing one of `PACKAGES` will probably fail; "" if nothing is wrong.

    A folder of that name is no package: W&B writes into a folder `wandb` where a script was started. Blocks for the disk, some
    milliseconds.
    """
    if sys.modules.get(package) is not None:
        return ""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: what has been imported under that name has no spec
        spec = None
    if spec is None or spec.origin is None:
        return f"the package {package!r} is not installed"
    installed = [found for name in PACKAGES[package] if (found := _distribution(name))]
    if any(_is_editable(one) for one in installed):
        return ""
    origin = Path(spec.origin)
    places = [Path(str(one.locate_file(f"{package}/__init__.py"))) for one in installed]
    if any(_same(origin, place) for place in places):
        return ""
    return f"the package {package!r} would be imported from {origin.parent}, where it is not installed"


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_editable(distribution: importlib.metadata.Distribution) -> bool:
    try:
        document = json.loads(distribution.read_text("direct_url.json") or "{}")
        return bool(document.get("dir_info", {}).get("editable"))
    except (OSError, ValueError, AttributeError):
        return False


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
