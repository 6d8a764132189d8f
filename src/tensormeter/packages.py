"""Detection of the packages that destinations need.

The packages are not imported here, because an import can take seconds. The agent imports them.
"""

import importlib.metadata
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

__all__ = ["PACKAGES", "STAND_IN_MARK", "is_replaced", "problem_with"]

PACKAGES: Final = {
    "grpc": ("grpcio",),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "prometheus_client": ("prometheus_client",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""Import names of the packages, with the distributions that install them."""


STAND_IN_MARK: Final = "__tensormeter_stand_in__"
"""Attribute of a module that was installed in the place of a package (see `tensormeter.wandb.install`)."""


def is_replaced(package: str) -> bool:
    """Return whether a module of tensormeter takes the place of a package in this process."""
    return bool(getattr(sys.modules.get(package), STAND_IN_MARK, False))


def problem_with(package: str) -> str:
    """Return why importing one of `PACKAGES` will probably fail, or "" if it should succeed.

    A plain folder with the package's name is ignored: W&B, for example, writes to a folder `wandb` in the working
    directory. The call blocks for a few milliseconds while it accesses the disk.
    """
    replaced = is_replaced(package)
    if sys.modules.get(package) is not None and not replaced:
        return ""
    try:
        spec = _find_replaced(package) if replaced else importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module with that name but without a spec was imported
        spec = None
    if spec is None or spec.origin is None:
        return f"the package {package!r} is not installed"
    installed = list(filter(None, map(_distribution, PACKAGES[package])))
    if any(map(_is_editable, installed)):
        return ""
    origin = Path(spec.origin)
    files = [Path(str(distribution.locate_file(f"{package}/__init__.py"))) for distribution in installed]
    if any(_same(origin, file) for file in files):
        return ""
    return f"the package {package!r} would be imported from {origin.parent}, which is not an installed package"


def _find_replaced(package: str) -> ModuleSpec | None:
    """Return the spec of a package whose place a module of tensormeter takes. `find_spec` would return that module's."""
    for finder in sys.meta_path:
        spec = finder.find_spec(package, None)
        if spec is not None:
            return spec
    return None


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
