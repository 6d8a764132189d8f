"""Tokens: who may do what. A file in the server's folder keeps them, but not what would let anyone use them.

A token is `tm_ID_SECRET`, with 192 random bits in the secret. That many cannot be guessed, so one SHA-256 is hash enough.
The file is replaced as a whole, so whoever reads it sees it before or after a change, never in between.
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
"""`write`: send metrics and logs. `read`: see runs. Both: also change names, tags and notes. `admin`: all, also delete."""

FILE_NAME: Final = "tokens.json"

LOCK_SECONDS: Final = 10.0
"""How long a change waits for another one, which takes milliseconds."""

_TOKEN: Final = re.compile(r"tm_([0-9a-f]{8})_([0-9a-f]{48})")
_VERSION: Final = 1
_MAX_NAME: Final = 128


@dataclass(frozen=True)
class Token:
    """What is known of a token.

    Attributes:
        id: Part of the token that is no secret.
        name: Whose it is, for people; unique in a file.
        permissions: What it allows.
        project: Of whose runs; None: of all.
        created: Seconds since the Unix epoch.
        expires: The same, or None for never.
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
        """Whether it lets its holder do this."""
        return permission in self.permissions or "admin" in self.permissions

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires is not None and now >= self.expires


class TokenFile:
    """The file of one server's folder. Processes: any number may read and change it at once. Threads: any number."""

    def __init__(self, directory: Path) -> None:
        """Name the file; it is read when it is asked for something."""
        self._path = directory / FILE_NAME
        self._seen: tuple[tuple[int, ...], dict[str, Token]] | None = None
        self._latest: dict[str, Token] | StoreError | None = None

    def latest(self) -> dict[str, Token] | None:
        """What `tokens` returned last. Does not look at the disk.

        Raises:
            StoreError: `tokens` raised it last.
        """
        latest = self._latest
        if isinstance(latest, StoreError):
            raise StoreError(str(latest))
        return latest

    def tokens(self) -> dict[str, Token] | None:
        """The tokens by id, as the file has them now; None if there is no file. Reads it only when it has changed.

        Raises:
            StoreError: It is there and cannot be read.
        """
        try:
            self._latest = latest = self._look()
        except StoreError as error:
            self._latest = error
            raise
        return latest

    def _look(self) -> dict[str, Token] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read ({error.strerror})") from None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen = self._seen
        if seen is None or seen[0] != stamp:
            seen = self._seen = (stamp, self._load())
        return seen[1]

    def find(self, text: str, *, latest: bool = False) -> Token | None:
        """The token that this text is, if it is one and its time is not over. Takes as long for a wrong secret as for a right one.

        Args:
            text: What a client sent.
            latest: Look only at what `latest` knows, and not at the disk.

        Raises:
            StoreError: As for `tokens`.
        """
        match = _TOKEN.fullmatch(text)
        known = self.latest() if latest else self.tokens()
        token = (known or {}).get(match[1]) if match else None
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
        """Add a token. Returns it, and the text for its holder, which is kept nowhere.

        Raises:
            UsageError: There is one of this name.
            SettingsError: Name or permissions cannot be used.
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
                raise UsageError(f"there is a token {name!r}; revoke it first, or choose another name")
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
        """Take back the token of this name or id: a server that runs refuses it from now on.

        Raises:
            UsageError: There is none.
            StoreError: The file cannot be read or written.
        """
        with self._changing() as tokens:
            found = [token for token in tokens.values() if selector in (token.name, token.id)]
            if not found:
                raise UsageError(f"there is no token {selector!r}; see `tensormeter token ls`")
            chosen = next((token for token in found if token.name == selector), found[0])
            del tokens[chosen.id]
        return chosen

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """The tokens, to be changed; they are written when the block ends well. One process at a time.

        Raises:
            StoreError: They cannot be read or written, or another process keeps its lock on them.
        """
        try:
            make_directory(self._path.parent)
            lock = self._path.with_suffix(".lock")
            descriptor = open_file(lock)
            try:
                if not wait_for_lock(descriptor, LOCK_SECONDS):
                    raise StoreError(
                        f"{lock} is locked by {lock_holder(lock)}, for {LOCK_SECONDS:g} s by now; end it, or try again later"
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
                raise StoreError(f"{self._path}: is of version {document['version']!r}; upgrade tensormeter")
            return {one["id"]: _token(one) for one in document["tokens"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path}: is not a file of tokens ({type(error).__name__}); restore it, or remove it and create new ones"
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
