"""W&B's API on top of tensormeter: ``import tensormeter.wandb as wandb``.

`docs/from-wandb.md` lists what is recorded, what is ignored with a warning, and what raises an error that names the
alternative. `install` makes ``import wandb`` in other packages return this module.
"""

import sys
import types
from typing import TYPE_CHECKING, Any, Final

from tensormeter.wandb import apis, current, data_types, errors, functions, plot, sdk, util
from tensormeter.wandb.apis import Api
from tensormeter.wandb.artifacts import Artifact
from tensormeter.wandb.errors import CommError, Error, UsageError
from tensormeter.wandb.functions import (
    AlertLevel,
    agent,
    alert,
    attach,
    controller,
    define_metric,
    ensure_configured,
    finish,
    join,
    link_model,
    log,
    log_artifact,
    log_model,
    login,
    mark_preempting,
    require,
    restore,
    save,
    setup,
    sweep,
    teardown,
    termerror,
    termlog,
    termwarn,
    unwatch,
    use_artifact,
    use_model,
    watch,
)
from tensormeter.wandb.media import (
    Audio,
    Classes,
    Graph,
    Histogram,
    Html,
    Image,
    Molecule,
    Object3D,
    Plotly,
    Video,
)
from tensormeter.wandb.plot import plot_table, visualize
from tensormeter.wandb.sdk import lib as wandb_lib
from tensormeter.wandb.sdk import wandb_config, wandb_init, wandb_metric, wandb_run, wandb_settings, wandb_summary
from tensormeter.wandb.sdk.wandb_config import Config
from tensormeter.wandb.sdk.wandb_init import init
from tensormeter.wandb.sdk.wandb_run import Run
from tensormeter.wandb.sdk.wandb_settings import Settings
from tensormeter.wandb.sdk.wandb_summary import Summary
from tensormeter.wandb.stand_in import install, uninstall
from tensormeter.wandb.table import Table

if TYPE_CHECKING:
    config: Config
    run: Run | None
    summary: Summary

__all__ = [
    "AlertLevel",
    "Api",
    "Artifact",
    "Audio",
    "Classes",
    "CommError",
    "Config",
    "Error",
    "Graph",
    "Histogram",
    "Html",
    "Image",
    "Molecule",
    "Object3D",
    "Plotly",
    "Run",
    "Settings",
    "Table",
    "UsageError",
    "Video",
    "agent",
    "alert",
    "apis",
    "attach",
    "controller",
    "data_types",
    "define_metric",
    "ensure_configured",
    "errors",
    "finish",
    "init",
    "install",
    "join",
    "link_model",
    "log",
    "log_artifact",
    "log_model",
    "login",
    "mark_preempting",
    "plot",
    "plot_table",
    "require",
    "restore",
    "save",
    "sdk",
    "setup",
    "sweep",
    "teardown",
    "termerror",
    "termlog",
    "termwarn",
    "uninstall",
    "unwatch",
    "use_artifact",
    "use_model",
    "util",
    "visualize",
    "wandb_config",
    "wandb_init",
    "wandb_lib",
    "wandb_metric",
    "wandb_run",
    "wandb_settings",
    "wandb_summary",
    "watch",
]

__version__: Final = "0.31.0"
"""Version of W&B whose API this module has."""

wandb_sdk: Final = sdk
_attach: Final = attach
patched: Final[dict[str, list[Any]]] = {"tensorboard": [], "keras": [], "gym": []}

_REPLACEMENTS: Final = {
    "ArtifactTTL": "files are not uploaded, so they do not expire",
    "Evaluation": "log a wandb.Table",
    "EvalTable": "log a wandb.Table",
    "JoinedTable": "log a wandb.Table",
    "box3d": "log an image of the boxes",
    "catboost": "log values in its callback with wandb.log",
    "integration": "use the modules of tensormeter.integrations",
    "keras": "use tensormeter.integrations.keras",
    "launch": "start the script with your scheduler",
    "lightgbm": "log values in its callback with wandb.log",
    "sklearn": "use wandb.plot",
    "tensorboard": "pass sync_tensorboard=True to wandb.init, or use tensormeter.tensorboard.SummaryWriter",
    "xgboost": "log values in its callback with wandb.log",
}
"""Names of W&B that are not here, and the alternatives."""

_without_run: Final = Summary({}, lambda values: functions.warn_without_run("summary"))


class _Module(types.ModuleType):
    """The class of this module, whose attributes `run`, `config` and `summary` depend on the current run."""

    @property
    def run(self) -> Run | None:
        return current.current_run()

    @run.setter
    def run(self, run: Run | None) -> None:
        current.set_current(run)

    @property
    def config(self) -> Config:
        run = current.current_run()
        return current.before_init if run is None else run.config

    @config.setter
    def config(self, values: Any) -> None:
        if values is not self.config:
            self.config.update(values)

    @property
    def summary(self) -> Summary:
        run = current.current_run()
        return _without_run if run is None else run.summary

    @summary.setter
    def summary(self, values: Any) -> None:
        if values is not self.summary:
            self.summary.update(values)


sys.modules[__name__].__class__ = _Module


def __getattr__(name: str) -> Any:
    """Raise an error that names the alternative, if there is one."""
    remedy = _REPLACEMENTS.get(name, "docs/from-wandb.md lists the supported names")
    raise AttributeError(f"tensormeter.wandb has no attribute {name!r}: {remedy}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "config", "run", "summary"]
