"""Base classes of Lightning, from the packages `lightning` and `pytorch_lightning`.

Both packages contain the same classes under different names, and check the type of loggers and callbacks. The bases combine
those of all installed packages, so that one class works with each of them.
"""

import types
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

__all__ = ["CallbackBase", "DummyExperimentBase", "LoggerBase"]

_PACKAGES: Final = [
    package
    for package, root in (("lightning.pytorch", "lightning"), ("pytorch_lightning", "pytorch_lightning"))
    if find_spec(root) is not None
] or ["lightning.pytorch"]  # the import explains that the package is missing


def _combine(module: str, name: str) -> Any:
    bases = tuple(getattr(import_module(f"{package}.{module}"), name) for package in _PACKAGES)
    return types.new_class(f"{name}Base", bases, exec_body=lambda body: body.update(__module__=__name__))


LoggerBase: Final = _combine("loggers.logger", "Logger")
CallbackBase: Final = _combine("callbacks.callback", "Callback")
DummyExperimentBase: Final = _combine("loggers.logger", "DummyExperiment")
"""Type of the experiments of all ranks but the first."""
