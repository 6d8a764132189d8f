"""A `SummaryWriter` that records with tensormeter, and a recorder of what other summary writers write.

``from tensormeter.tensorboard import SummaryWriter`` replaces ``from torch.utils.tensorboard import SummaryWriter``.
`tensormeter.tensorboard.sync.start()` keeps the original writers, and also records their values.
"""

from tensormeter.tensorboard import sync
from tensormeter.tensorboard.writer import SummaryWriter

__all__ = ["SummaryWriter", "sync"]
