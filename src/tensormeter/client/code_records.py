"""Events about a run's code and its artifacts, read from a server."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensormeter.client.records import Record
from tensormeter.conventions.semconv import MEDIA_KEY

__all__ = ["RecordedArtifact", "RecordedCode"]


@dataclass(frozen=True)
class RecordedArtifact(Record):
    """An event with the place of a file or folder, such as a checkpoint. Its name is in `key`."""

    @property
    def type(self) -> str:
        """Type, such as "model"."""
        return str(self._fields.get("type", ""))

    @property
    def place(self) -> str:
        """Absolute path on the machine of the process, or an address."""
        return str(self._fields.get("path") or self._fields.get("uri") or "")

    @property
    def aliases(self) -> Sequence[str]:
        """Aliases of this version."""
        return _texts(self._fields.get("aliases"))

    @property
    def size(self) -> int | None:
        """Size in bytes; None if unknown."""
        return _integer(self._fields.get("size"))

    @property
    def files(self) -> int | None:
        """Number of files; None if unknown."""
        return _integer(self._fields.get("files"))

    @property
    def digest(self) -> str | None:
        """`sha256:` and the digest in hexadecimal; None if there is none, or if it is not computed yet."""
        digest = self._fields.get("digest")
        return digest if isinstance(digest, str) else None

    @property
    def problem(self) -> str:
        """Reason why there is no digest; "" if there is one or if it is not computed yet."""
        return str(self._fields.get("problem") or "")

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
        dirty = self._git.get("dirty")
        return dirty if isinstance(dirty, bool) else None

    @property
    def diff(self) -> str:
        """Uncommitted changes of tracked files, up to 256 KiB."""
        return str(self._git.get("diff", ""))

    @property
    def untracked(self) -> Sequence[str]:
        """Names of untracked files and folders."""
        return _texts(self._git.get("untracked"))

    @property
    def script(self) -> str:
        """Path of the script; "" if there is none, as in a notebook."""
        return str(_mapping(self._fields.get("source")).get("path", ""))

    @property
    def source(self) -> str:
        """Source of the script, up to 256 KiB."""
        return str(_mapping(self._fields.get("source")).get("text", ""))

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions of the installed packages, by name."""
        return {name: str(version) for name, version in _mapping(self._fields.get("packages")).items()}

    @property
    def python(self) -> str:
        """Version of Python."""
        return str(self._fields.get("python", ""))

    @property
    def gpus(self) -> Sequence[str]:
        """Names of the GPU models on rank 0's machine."""
        return _texts(self._fields.get("gpus"))

    @property
    def problem(self) -> str:
        """Reason why something is missing; "" if there is none."""
        return str(self._fields.get("problem") or self._git.get("problem") or "")

    @property
    def _git(self) -> Mapping[str, Any]:
        return _mapping(self._fields.get("git"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None
