"""A logger and a callback for Lightning, for both packages `lightning` and `pytorch_lightning`, and for Fabric."""

from tensormeter.integrations.lightning.callback import TensormeterCallback
from tensormeter.integrations.lightning.logger import TensormeterLogger

__all__ = ["TensormeterCallback", "TensormeterLogger"]
