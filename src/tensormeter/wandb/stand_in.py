"""A module `wandb` that third-party code imports instead of W&B's package."""

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any, Final

from tensormeter.errors import UsageError
from tensormeter.logger import get_logger
from tensormeter.packages import STAND_IN_MARK
from tensormeter.session import open_runs

__all__ = ["install", "uninstall"]

logger: Final = get_logger()

_SUBMODULES: Final = (
    "apis",
    "data_types",
    "errors",
    "plot",
    "sdk",
    "sdk.lib",
    "sdk.lib.config_util",
    "sdk.lib.runid",
    "sdk.wandb_config",
    "sdk.wandb_init",
    "sdk.wandb_metric",
    "sdk.wandb_run",
    "sdk.wandb_settings",
    "sdk.wandb_summary",
    "util",
)

_OTHER_NAMES: Final = {
    "apis.public": "apis",
    "sdk.data_types": "data_types",
    "wandb_run": "sdk.wandb_run",
}
"""Names of modules in W&B's package, and the submodules with their contents."""

_replaced: Final[dict[str, types.ModuleType]] = {}
"""Modules of W&B's package that were imported before `install`."""


class _StandIn(types.ModuleType):
    """The module `wandb`. Its attributes are those of `tensormeter.wandb`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["tensormeter.wandb"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__") or name in _SUBMODULES:
            super().__setattr__(name, value)
        else:
            setattr(sys.modules["tensormeter.wandb"], name, value)

    def __dir__(self) -> list[str]:
        return dir(sys.modules["tensormeter.wandb"])


def install() -> None:
    """Make ``import wandb`` return `tensormeter.wandb` in this process, for packages such as TRL that log to W&B directly.

    Call it before those packages are imported. `importlib.util.find_spec("wandb")` then finds a module, too, even if W&B's package
    is not installed. W&B's package stays available to the `wandb` destination, which runs in another process. A second call does
    nothing.

    Raises:
        UsageError: A run's `wandb` destination uses W&B's package in this process.
    """
    if getattr(sys.modules.get("wandb"), STAND_IN_MARK, False):
        return
    _check_runs()
    if "wandb" in sys.modules:
        logger.warning(
            "wandb.install: W&B's package was imported before; modules that have imported it go on to use it"
        )
    for name in [name for name in sys.modules if name == "wandb" or name.startswith("wandb.")]:
        _replaced[name] = sys.modules.pop(name)
    stand_in = _StandIn("wandb", "W&B's API on top of tensormeter.")
    spec = importlib.machinery.ModuleSpec("wandb", None, origin=__file__, is_package=True)
    stand_in.__spec__, stand_in.__path__, stand_in.__package__ = spec, [], "wandb"
    stand_in.__file__ = __file__
    setattr(stand_in, STAND_IN_MARK, True)
    for name, own in [*((name, name) for name in _SUBMODULES), *_OTHER_NAMES.items()]:
        sys.modules[f"wandb.{name}"] = sys.modules[f"tensormeter.wandb.{own}"]
    sys.modules["wandb"] = stand_in


def uninstall() -> None:
    """Undo `install`: ``import wandb`` finds W&B's package again. Modules that have imported the stand-in keep it."""
    if getattr(sys.modules.get("wandb"), STAND_IN_MARK, False):
        for name in [name for name in sys.modules if name == "wandb" or name.startswith("wandb.")]:
            del sys.modules[name]
        sys.modules.update(_replaced)
        _replaced.clear()


def _check_runs() -> None:
    for run in open_runs.all_open():
        kinds = {destination.partition(":")[0] for destination in run.settings.exporters}
        if run.settings.agent == "thread" and "wandb" in kinds and run.settings.mode == "online":
            raise UsageError(
                f"wandb.install: the destination 'wandb' of run {run.id} uses W&B's package in this process (agent='thread'); "
                "call install() before init(), or use agent='process'"
            )
