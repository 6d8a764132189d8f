"""W&B's settings. Those with a counterpart take effect, and the others are kept without an effect."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["Settings"]

_KNOWN: Final = (
    "anonymous",
    "console",
    "disabled",
    "entity",
    "mode",
    "project",
    "reinit",
    "resume",
    "root_dir",
    "run_group",
    "run_id",
    "run_job_type",
    "run_name",
    "run_notes",
    "run_tags",
    "save_code",
    "silent",
    "start_method",
    "sync_tensorboard",
)

_ARGUMENTS: Final = {
    "dir": "root_dir",
    "group": "run_group",
    "id": "run_id",
    "job_type": "run_job_type",
    "name": "run_name",
    "notes": "run_notes",
    "tags": "run_tags",
}
"""Names of settings that differ from those of the arguments of `init`."""


class Settings:
    """Settings for `init`, given by name. Any name is accepted, because W&B has more than a hundred of them.

    The settings that have the meaning of an argument of `init` (`project`, `run_id`, `run_name`, `mode` ...) take effect unless
    the argument is given. So do `silent`, `console="off"`, `save_code` and `x_disable_stats`.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__["_values"] = values

    def argument(self, name: str) -> Any:
        """Return the setting that has the meaning of an argument of `init`, or None."""
        return self._values.get(_ARGUMENTS.get(name, name), self._values.get(name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        if name in self._values:
            return self._values[name]
        if name in _KNOWN or name.startswith(("x_", "_")):
            return None
        raise AttributeError(f"tensormeter.wandb.Settings: {name!r} was not given")

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def update(self, values: "Settings | Mapping[str, Any]" = (), **named: Any) -> None:  # type: ignore[assignment]
        """Add or replace settings."""
        self._values.update({**dict(values), **named})

    def keys(self) -> list[str]:
        """Return the names of the given settings."""
        return list(self._values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __repr__(self) -> str:
        return f"Settings({', '.join(self._values)})"
