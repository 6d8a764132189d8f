"""Where a process runs, as the spool keeps it: to know, when its ring is gone, that the process is, and to send the news of its end.

Rings are in memory. After a loss of power the spool is all there is: it has what was put into it, and not the end of the process.
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
    """Of one process.

    Attributes:
        host: Name of the machine.
        boot: The machine's id of its present boot; "" if it has none.
        pid: Process id.
        began: When the process began, in the kernel's ticks since boot; "" if not known.
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
        """Of a process of this machine."""
        return cls(socket.gethostname(), _boot(), pid, _began(pid), child, resource)

    @classmethod
    def from_json(cls, text: str) -> "Origin | None":
        """The inverse of `to_json`; None if it is nothing of the kind."""
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = (str, str, int, str, bool, dict)
        values = (found.host, found.boot, found.pid, found.began, found.child, found.resource)
        return found if all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)) else None

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @property
    def rebooted(self) -> bool:
        """Whether its machine is this one, and has been started again since."""
        here = _boot()
        return self.host == socket.gethostname() and bool(self.boot and here) and self.boot != here

    def fate(self) -> str:
        """What has become of a process whose ring is gone, for people; "" if it may live."""
        if self.host != socket.gethostname():
            return ""
        if self.rebooted:
            return "the machine lost power or was restarted before the run ended"
        began = _began(self.pid)
        if not self.began or began == self.began or (not began and not Path("/proc/self").exists()):
            return ""
        return "the process is gone, and the memory with what it had logged last as well"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _began(pid: int) -> str:
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid:d}/stat").read_bytes().rpartition(b")")[2].split()
        return os.fsdecode(fields[19])
    except (OSError, IndexError, ValueError):
        return ""
