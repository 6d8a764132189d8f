"""Origin of a process, stored in the spool so that the process's end can be detected when its ring is gone.

Rings are in memory. After a power failure, only the spool is left, and it does not contain the process's end event.
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
    """Machine and start of one process.

    Attributes:
        host: Name of the machine.
        boot: ID of the machine's boot; empty if unknown.
        pid: Process ID.
        began: Start time of the process, in kernel ticks since boot; empty if unknown.
        child: Whether the process is a child of another process of the run, so that its end does not end the run.
        resource: Attributes of the process's resource.
    """

    host: str
    boot: str
    pid: int
    began: str
    child: bool
    resource: Mapping[str, Attribute]

    @classmethod
    def of(cls, pid: int, resource: Mapping[str, Attribute], *, child: bool) -> "Origin":
        """Return the origin of a process on this machine."""
        return cls(socket.gethostname(), _boot(), pid, _began(pid), child, resource)

    @classmethod
    def from_json(cls, text: str) -> "Origin | None":
        """Decode an origin that `to_json` encoded; return None if the string is not an origin."""
        try:
            origin = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = (str, str, int, str, bool, dict)
        values = (origin.host, origin.boot, origin.pid, origin.began, origin.child, origin.resource)
        return origin if all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)) else None

    def to_json(self) -> str:
        """Encode the origin as a string for `from_json`."""
        return json.dumps(asdict(self))

    @property
    def rebooted(self) -> bool:
        """Whether the process ran on this machine before its last restart."""
        here = _boot()
        return self.host == socket.gethostname() and bool(self.boot and here) and self.boot != here

    def fate(self) -> str:
        """Return a description, for users, of how a process without a ring ended; empty if it may be alive."""
        if self.host != socket.gethostname():
            return ""
        if self.rebooted:
            return "the machine lost power or was restarted before the run ended"
        began = _began(self.pid)
        if not self.began or began == self.began or (not began and not Path("/proc/self").exists()):
            return ""
        return "the process is gone, and with it the memory that contained its last values"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _began(pid: int) -> str:
    try:
        # The program's name, in parentheses, may contain any characters.
        fields = Path(f"/proc/{pid:d}/stat").read_bytes().rpartition(b")")[2].split()
        return os.fsdecode(fields[19])
    except (OSError, IndexError, ValueError):
        return ""
