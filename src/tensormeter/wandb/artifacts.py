"""Artifacts: names for files, folders and addresses, whose sizes and digests the agent records. Nothing is uploaded."""

import glob as globbing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from tensormeter.wandb.notices import refuse, warn_ignored, warn_once

if TYPE_CHECKING:
    from tensormeter.wandb.sdk.wandb_run import Run

__all__ = ["Artifact", "record_artifact", "save_files"]

_MOST_FILES: Final = 1000
"""Maximum number of entries of one artifact, or of files of one `save` call, that are recorded."""

_READS_DATA: Final = "the files stay where they are; read them there"


class Artifact:
    """A named collection of files, folders, addresses and values.

    `log_artifact` records each entry under the artifact's name, or under `NAME/ENTRY` if there are several.

    Attributes:
        name: Name of the artifact.
        type: Type of the artifact, such as `model`.
        description: Description, which is not recorded.
        metadata: Metadata, which is not recorded.
        aliases: Aliases under which the artifact was logged.
        version: Always `v0`, because the server numbers no versions.
    """

    version = "v0"
    state = "PENDING"

    def __init__(
        self, name: str, type: str, description: str | None = None, metadata: Any = None, **named: Any
    ) -> None:
        """
        Args:
            name: Name of the artifact.
            type: Type of the artifact.
            description: Ignored with a warning.
            metadata: Ignored with a warning.
            named: Further arguments of W&B's class, which have no effect.
        """
        self.name = name
        self.type = type
        self.description = description
        self.metadata = dict(metadata or {})
        self.aliases: list[str] = []
        self.entries: list[tuple[str, str]] = []
        self.values: list[tuple[str, Any]] = []
        self.new_files: list[tuple[str, bytes]] = []
        if description or metadata:
            warn_ignored("wandb.Artifact(description=, metadata=)", "put them into the run's configuration")

    def add_file(self, local_path: Any, name: str | None = None, *arguments: Any, **named: Any) -> Self:
        """Add a file.

        Args:
            local_path: Path of the file.
            name: Name of the entry. Default: the name of the file.
            arguments: Further arguments of W&B's method, which have no effect.
            named: Further arguments of W&B's method, which have no effect.
        """
        self.entries.append((name or os.path.basename(os.fspath(local_path)), os.path.abspath(local_path)))
        return self

    def add_dir(self, local_path: Any, name: str | None = None, *arguments: Any, **named: Any) -> Self:
        """Add a folder as one entry. See `add_file` for the arguments."""
        folder = os.path.abspath(local_path)
        self.entries.append((name or os.path.basename(folder), folder))
        return self

    def add_reference(self, uri: Any, name: str | None = None, *arguments: Any, **named: Any) -> Self:
        """Add an address. See `add_file` for the arguments."""
        self.entries.append((name or str(uri).rstrip("/").rpartition("/")[2], str(uri)))
        return self

    def add(self, obj: Any, name: str, *arguments: Any, **named: Any) -> Self:
        """Add a `Table` or another loggable value, which `log_artifact` logs as `ARTIFACT/NAME`."""
        self.values.append((name, obj))
        return self

    @contextmanager
    def new_file(self, name: str, mode: str = "x", encoding: str | None = None) -> Iterator[IO[Any]]:
        """Write a file, which `log_artifact` stores in the run's folder (`Run.dir`).

        Args:
            name: Name of the entry.
            mode: Mode of the file object: with or without `b`.
            encoding: Text encoding. Default: UTF-8.
        """
        import io

        file: Any = io.BytesIO() if "b" in mode else io.StringIO(newline="")
        yield file
        content = file.getvalue()
        self.new_files.append((name, content if isinstance(content, bytes) else content.encode(encoding or "utf-8")))

    def wait(self, timeout: float | None = None) -> Self:
        """Return the artifact at once, because nothing is uploaded."""
        return self

    def save(self, *arguments: Any, **named: Any) -> None:
        """Record the artifact in the current run."""
        from tensormeter.wandb.functions import log_artifact

        log_artifact(self)

    def download(self, *arguments: Any, **named: Any) -> Any:
        refuse("Artifact.download", _READS_DATA)

    checkout = get = get_path = get_entry = file = files = verify = logged_by = used_by = new_draft = download

    def link(self, *arguments: Any, **named: Any) -> None:
        """Do nothing but warn once."""
        warn_ignored("Artifact.link", "there is no registry of artifacts")

    def finalize(self) -> None:
        """Do nothing, because `log_artifact` records the entries."""

    def is_draft(self) -> bool:
        """Return whether the artifact has not been logged."""
        return self.state == "PENDING"

    @property
    def source_name(self) -> str:
        return self.full_name

    @property
    def full_name(self) -> str:
        return f"{self.name}:{self.version}"

    qualified_name = full_name

    def __repr__(self) -> str:
        return f"<Artifact {self.name} ({self.type})>"


def record_artifact(
    run: "Run", artifact_or_path: Any, name: str | None, type: str | None, aliases: Sequence[str]
) -> Artifact:
    """Record an artifact. See `Run.log_artifact` for the arguments."""
    artifact = artifact_or_path
    if not isinstance(artifact, Artifact):
        place = artifact_or_path if isinstance(artifact_or_path, str) else os.fspath(artifact_or_path)
        last = place.rstrip("/").rpartition("/")[2] or place
        artifact = Artifact(name or last, type or "unspecified").add_reference(place)
    artifact.aliases = list(dict.fromkeys([*artifact.aliases, *aliases]))
    entries = [*artifact.entries, *_write_new_files(run, artifact)]
    if len(entries) > _MOST_FILES:
        warn_once(
            ("entries", artifact.name),
            "artifact %r: only the first %d of %d entries are recorded; use add_dir for a folder",
            *(artifact.name, _MOST_FILES, len(entries)),
        )
    for entry, place in entries[:_MOST_FILES]:
        label = artifact.name if len(entries) == 1 else f"{artifact.name}/{entry}"
        run._recorded.log_artifact(place, label, artifact.type, aliases=artifact.aliases)
    if artifact.values:
        run.log({f"{artifact.name}/{entry}": value for entry, value in artifact.values}, commit=False)
    artifact.state = "COMMITTED"
    return artifact


def _write_new_files(run: "Run", artifact: Artifact) -> list[tuple[str, str]]:
    written = []
    root = Path(run.dir, "artifacts", _file_name(artifact.name)).resolve() if artifact.new_files else Path()
    for name, data in artifact.new_files:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            warn_once(
                ("outside", name),
                "artifact %r: ignored the file %r, because it is outside of %s",
                artifact.name,
                name,
                root,
            )
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            warn_once(("unwritten", name), "artifact %r: cannot write %s: %s", artifact.name, path, error.strerror)
            continue
        written.append((name, str(path)))
    artifact.new_files = []
    return written


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".") or "artifact"


def save_files(run: "Run", pattern: Any, base: Any, *, glob: bool) -> list[str]:
    """Record the files that match a pattern. See `Run.save` for the arguments. Blocks while it lists folders."""
    pattern = os.fspath(pattern)
    if isinstance(pattern, bytes):
        pattern = os.fsdecode(pattern)
    found = [pattern] if not glob or os.path.exists(pattern) else sorted(globbing.iglob(pattern, recursive=True))
    paths = [os.path.abspath(path) for path in found if os.path.exists(path)]
    if not paths:
        warn_once(("save", pattern), "wandb.save(%r): there is no such file, so nothing is recorded", pattern)
    if len(paths) > _MOST_FILES:
        warn_once(
            ("save", pattern),
            "wandb.save(%r): only the first %d of %d files are recorded; pass their folder",
            *(pattern, _MOST_FILES, len(paths)),
        )
    root = os.path.abspath(base or ".")
    for path in paths[:_MOST_FILES]:
        name = os.path.relpath(path, root) if path.startswith(root + os.sep) else os.path.basename(path)
        run._recorded.log_artifact(path, name, "file")
    return paths[:_MOST_FILES]
