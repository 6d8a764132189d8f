"""Events about a run's code and its artifacts, read from a server."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tensormeter.client.records import Record
from tensormeter.conventions.semconv import MEDIA_KEY

__all__ = ["RecordedArtifact", "RecordedCode"]


@dataclass(frozen=True)
class RecordedArtifact(Record):
    """An event with the place of a file or folder, such as a checkpoint. Its name is in `key`."""

    @property
    def type(self) -> str:
        """Type, such as "model"."""
        return str(self.body.get("type", ""))

    @property
    def place(self) -> str:
        """Absolute path on the machine of the process, or an address."""
        return str(self.body.get("path") or self.body.get("uri") or "")

    @property
    def aliases(self) -> Sequence[str]:
        """Aliases of this version."""
        return list(self.body.get("aliases") or ())

    @property
    def size(self) -> int | None:
        """Size in bytes; None if unknown."""
        return cast("int | None", self.body.get("size"))

    @property
    def files(self) -> int | None:
        """Number of files; None if unknown."""
        return cast("int | None", self.body.get("files"))

    @property
    def digest(self) -> str | None:
        """`sha256:` and the digest in hexadecimal; None if there is none, or if it is not computed yet."""
        return cast("str | None", self.body.get("digest"))

    @property
    def problem(self) -> str:
        """Reason why there is no digest; "" if there is one or if it is not computed yet."""
        return str(self.body.get("problem") or "")

    @staticmethod
    def latest(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return one event for each artifact: a large one has an event without its digest, and later another one."""
        latest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for event in events:
            key = event["time"], event["process"], event["attributes"].get(MEDIA_KEY)
            body = event["body"]
            if key not in latest or (isinstance(body, Mapping) and (body.get("digest") or body.get("problem"))):
                latest[key] = event
        return list(latest.values())


@dataclass(frozen=True)
class RecordedCode(Record):
    """An event with the code of a run. Secrets are shown as `***`."""

    @property
    def commit(self) -> str:
        """Git commit in hexadecimal; "" if there is none."""
        return str(self._git.get("commit", ""))

    @property
    def branch(self) -> str:
        """Git branch; "" if there is none."""
        return str(self._git.get("branch", ""))

    @property
    def remote(self) -> str:
        """Address of the git remote `origin`; "" if there is none."""
        return str(self._git.get("remote", ""))

    @property
    def dirty(self) -> bool | None:
        """Whether tracked files differed from the commit; None if unknown."""
        return self._git.get("dirty")

    @property
    def diff(self) -> str:
        """Uncommitted changes of tracked files, up to 256 KiB."""
        return str(self._git.get("diff", ""))

    @property
    def untracked(self) -> Sequence[str]:
        """Names of untracked files and folders."""
        return list(self._git.get("untracked") or ())

    @property
    def script(self) -> str:
        """Path of the script; "" if there is none, as in a notebook."""
        return str((self.body.get("source") or {}).get("path", ""))

    @property
    def source(self) -> str:
        """Source of the script, up to 256 KiB."""
        return str((self.body.get("source") or {}).get("text", ""))

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions of the installed packages, by name."""
        return dict(self.body.get("packages") or {})

    @property
    def python(self) -> str:
        """Version of Python."""
        return str(self.body.get("python", ""))

    @property
    def gpus(self) -> Sequence[str]:
        """Names of the GPU models on rank 0's machine."""
        return list(self.body.get("gpus") or ())

    @property
    def problem(self) -> str:
        """Reason why something is missing; "" if there is none."""
        return str(self.body.get("problem") or self._git.get("problem") or "")

    @property
    def _git(self) -> Mapping[str, Any]:
        return self.body.get("git") or {}
