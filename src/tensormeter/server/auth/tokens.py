"""Access tokens and their permissions. A file in the server's folder stores the tokens as hashes.

A token has the form `tm_ID_SECRET`, with 192 random bits in the secret. Because the secret cannot be guessed, a
single SHA-256 is a sufficient hash. Every change replaces the whole file, so readers never see a partial change.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tensormeter.disk.atomic import write_file
from tensormeter.disk.locks import lock_holder, note_holder, wait_for_lock
from tensormeter.disk.private import make_directory, open_file
from tensormeter.errors import SettingsError, StoreError, UsageError

__all__ = ["PERMISSIONS", "Permission", "Token", "TokenFile"]

Permission = Literal["write", "read", "admin"]

PERMISSIONS: Final[Sequence[Permission]] = get_args(Permission)
"""Permissions: `write` allows sending metrics and logs, and `read` allows reading runs.

Together, `write` and `read` also allow editing names, tags and notes. `admin` allows everything, including deleting runs.
"""

FILE_NAME: Final = "tokens.json"

LOCK_SECONDS: Final = 10.0
"""Maximum seconds to wait while another process changes the file, which usually takes milliseconds."""

_TOKEN: Final = re.compile(r"tm_([0-9a-f]{8})_([0-9a-f]{48})")
_VERSION: Final = 1
_MAX_NAME: Final = 128


@dataclass(frozen=True)
class Token:
    """Stored record of a token.

    Attributes:
        id: Public part of the token.
        name: Human-readable name, such as the holder's name, which is unique within a file.
        permissions: Permissions of the holder.
        project: The only project that the token grants access to; None for all projects.
        created: Creation time, in seconds since the Unix epoch.
        expires: Expiry time, in seconds since the Unix epoch; None if the token never expires.
        digest: SHA-256 of the token, in hex.
    """

    id: str
    name: str
    permissions: Sequence[Permission]
    project: str | None
    created: float
    expires: float | None
    digest: str = field(repr=False)

    def allows(self, permission: Permission) -> bool:
        """Return whether the token grants this permission."""
        return permission in self.permissions or "admin" in self.permissions

    def expired(self, now: float) -> bool:
        """Return whether the token has expired at `now`, in seconds since the Unix epoch."""
        return self.expires is not None and now >= self.expires


class TokenFile:
    """Token file in a server's folder. Any number of processes and threads may read and change it concurrently."""

    def __init__(self, directory: Path) -> None:
        """Use the token file in a folder. The file is not read until a method needs it."""
        self._path = directory / FILE_NAME
        self._loaded: tuple[tuple[int, ...], dict[str, Token]] | None = None
        self._latest: dict[str, Token] | StoreError | None = None

    def latest(self) -> dict[str, Token] | None:
        """Return the last result of `tokens` without accessing the disk.

        Raises:
            StoreError: The last `tokens` call raised this error.
        """
        latest = self._latest
        if isinstance(latest, StoreError):
            raise StoreError(str(latest))
        return latest

    def tokens(self) -> dict[str, Token] | None:
        """Return the current tokens by ID, or None if there is no file. The file is read only if it has changed.

        Raises:
            StoreError: The file exists but cannot be read.
        """
        try:
            self._latest = latest = self._read_if_changed()
        except StoreError as error:
            self._latest = error
            raise
        return latest

    def _read_if_changed(self) -> dict[str, Token] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read ({error.strerror})") from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        loaded = self._loaded
        if loaded is None or loaded[0] != stamp:
            loaded = self._loaded = (stamp, self._load())
        return loaded[1]

    def find(self, text: str, *, latest: bool = False) -> Token | None:
        """Return the record of a token, or None if the token is unknown or has expired.

        The search takes equally long whether or not the secret is correct.

        Args:
            text: Token as the client sent it.
            latest: Whether to search the result of `latest`, without accessing the disk.

        Raises:
            StoreError: `tokens` or `latest` raised this error.
        """
        match = _TOKEN.fullmatch(text)
        tokens = self.latest() if latest else self.tokens()
        token = (tokens or {}).get(match[1]) if match else None
        digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        equal = hmac.compare_digest(digest, token.digest if token else "0" * len(digest))
        return token if token is not None and equal and not token.expired(time.time()) else None

    def create(
        self,
        name: str,
        permissions: Iterable[Permission],
        *,
        project: str | None = None,
        days: float | None = None,
    ) -> tuple[Token, str]:
        """Add a token. Return its record and the token itself, which is not stored anywhere.

        Raises:
            UsageError: A token with this name already exists.
            SettingsError: The name, the project or the permissions are invalid.
            StoreError: The file cannot be read or written.
        """
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise SettingsError(f"name: expected 1 to {_MAX_NAME} printable characters, got {name[:_MAX_NAME]!r}")
        if project is not None and not project.encode(errors="ignore").decode() == project:
            raise SettingsError(f"project: expected text in UTF-8, got {project!r}")
        allowed = [permission for permission in PERMISSIONS if permission in set(permissions)]
        if not allowed:
            raise SettingsError(f"permissions: expected some of {', '.join(PERMISSIONS)}")
        with self._changing() as tokens:
            if any(token.name == name for token in tokens.values()):
                raise UsageError(f"a token named {name!r} already exists; revoke it first, or choose another name")
            identity = secrets.token_hex(4)
            while identity in tokens:
                identity = secrets.token_hex(4)
            text = f"tm_{identity}_{secrets.token_hex(24)}"
            now = time.time()
            expires = None if days is None else now + days * 86400
            digest = hashlib.sha256(text.encode()).hexdigest()
            token = tokens[identity] = Token(identity, name, allowed, project, now, expires, digest)
        return token, text

    def revoke(self, selector: str) -> Token:
        """Revoke the token with this name or ID. A running server refuses it immediately.

        Raises:
            UsageError: No token has this name or ID.
            StoreError: The file cannot be read or written.
        """
        with self._changing() as tokens:
            matches = [token for token in tokens.values() if selector in (token.name, token.id)]
            if not matches:
                raise UsageError(f"there is no token {selector!r}; list tokens with `tensormeter token ls`")
            token = next((token for token in matches if token.name == selector), matches[0])
            del tokens[token.id]
        return token

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """Lock the file against other processes, yield its tokens, and write them if the block succeeds.

        Raises:
            StoreError: The file cannot be read or written, or another process keeps it locked.
        """
        try:
            make_directory(self._path.parent)
            lock = self._path.with_suffix(".lock")
            descriptor = open_file(lock)
            try:
                if not wait_for_lock(descriptor, LOCK_SECONDS):
                    raise StoreError(
                        f"{lock}: locked by {lock_holder(lock)} for more than {LOCK_SECONDS:g} s; end that process, or try again later"
                    )
                note_holder(descriptor)
                tokens = self._load() if self._path.exists() else {}
                yield tokens
                self._write(tokens)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be changed ({error.strerror})") from None

    def _load(self) -> dict[str, Token]:
        try:
            document = json.loads(self._path.read_bytes())
            if document["version"] != _VERSION:
                raise StoreError(
                    f"{self._path}: has format version {document['version']!r}, which this release cannot read; upgrade tensormeter"
                )
            return {fields["id"]: _token(fields) for fields in document["tokens"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path}: not a valid token file ({type(error).__name__}); restore it, or remove it and create new tokens"
            ) from None

    def _write(self, tokens: Mapping[str, Token]) -> None:
        document = {"version": _VERSION, "tokens": [asdict(token) for token in tokens.values()]}
        write_file(self._path, json.dumps(document, indent=1), sync=True)


def _token(document: Mapping[str, Any]) -> Token:
    permissions = document["permissions"]
    texts = (document["id"], document["name"], document["digest"])
    if not set(permissions) <= set(PERMISSIONS) or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a token")
    project, expires = document["project"], document["expires"]
    if not isinstance(project, str | None) or not isinstance(expires, float | int | None):
        raise TypeError("not a token")
    return Token(
        document["id"], document["name"], permissions, project, document["created"], expires, document["digest"]
    )
