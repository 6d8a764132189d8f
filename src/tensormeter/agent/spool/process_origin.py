"""The place where a process runs, stored in the spool, so that its end can be detected and sent when its ring is gone.

Rings are in memory. After a power failure only the spool is left, which does not contain the end of the process.
"""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tensormeter.otlp.batch import Attribute

__all__ = ["Origin"]


@dataclass(frozen=True)
class Origin:
    """Origin of one process.

    Attributes:
        host: Name of the machine.
        boot: Id of the machine's boot; "" if it has none.
        pid: Process id.
        began: Start of the process, in the kernel's ticks since boot; "" if not known.
        child: Whether another process has started it, so that it does not end the run.
        resource: Attributes of its resource.
    """

    host: str
    boot: str
    pid: int
    began: str
    child: bool
    resource: Mapping[str, Attribute]

    @classmethod
    def of(cls, pid: int, resource: Mapping[str, Attribute], *, child: bool) -> "Origin":
        """Origin of a process of this machine."""
        return cls(socket.gethostname(), _boot(), pid, _began(pid), child, resource)

    @classmethod
    def from_json(cls, text: str) -> "Origin | None":
        """The inverse of `to_json`; None for other texts."""
        try:
            origin = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = (str, str, int, str, bool, dict)
        values = (origin.host, origin.boot, origin.pid, origin.began, origin.child, origin.resource)
        return origin if all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)) else None

    def to_json(self) -> str:
        """Return a text for `from_json`."""
        return json.dumps(asdict(self))

    @property
    def rebooted(self) -> bool:
        """Whether the process ran on this machine before its last restart."""
        here = _boot()
        return self.host == socket.gethostname() and bool(self.boot and here) and self.boot != here

    def fate(self) -> str:
        """Description of how a process whose ring is gone has ended, for people; "" if it may live."""
        if self.host != socket.gethostname():
            return ""
        if self.rebooted:
            return "the machine lost power or was restarted before the run ended"
        began = _began(self.pid)
        if not self.began or began == self.began or (not began and not Path("/proc/self").exists()):
            return ""
        return "the process is gone, and so is the memory with the values that it logged last"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _began(pid: int) -> str:
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid:d}/stat").read_bytes().rpartition(b")")[2].split()
        return os.fsdecode(fields[19])
    except (OSError, IndexError, ValueError):
        return ""
