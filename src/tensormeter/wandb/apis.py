"""The module `wandb.apis`. W&B's servers cannot be read here; `tensormeter.Client` reads runs."""

import sys
from typing import Any, Final, NoReturn

from tensormeter.wandb.notices import refuse

__all__ = ["Api", "InternalApi", "PublicApi", "public"]

_REMEDY: Final = (
    'read runs with tensormeter.Client: `for run in tensormeter.Client().runs(project): run.series("loss").to_pandas()`; for '
    "runs on W&B's servers, use W&B's own package"
)


class Api:
    """W&B's client, which is refused."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Raise `UnsupportedError`."""
        refuse("wandb.Api", _REMEDY)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)


PublicApi = InternalApi = Api
public = sys.modules[__name__]
