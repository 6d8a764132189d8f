"""The certificate that the server shows, read again when its files change."""

import logging
import os
import ssl
from pathlib import Path

from tensormeter.errors import SettingsError

__all__ = ["Certificate", "load_certificate"]

_log = logging.getLogger(__name__)

_State = tuple[tuple[int, int, int, int] | None, ...]


def load_certificate(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context that shows the certificate.

    Args:
        certificate: File with it, and those between it and the authority, in PEM.
        key: File with its private key, without a passphrase.

    Raises:
        SettingsError: They cannot be read, or do not belong together.
    """

    def no_passphrase() -> str:
        raise SettingsError(f"tls_key: {key} has a passphrase, which nobody is there to type; store it without")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except SettingsError:
        raise
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"tls_cert, tls_key: {certificate} and {key} are not a certificate and its key in PEM ({error.strerror or error})"
        ) from None
    return context


class Certificate:
    """Gives each new connection the certificate that is in the files by then; connections that are open keep theirs.

    Two `stat` a handshake, as for tokens: nothing watches, and no state can be out of date. Files that cannot be used are
    said in the log, once for each change of theirs, and the last ones that could be stay in use. For one thread.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Of these files; see `load_certificate`."""
        self._files = certificate, key
        self._seen = self._state()
        self._context = load_certificate(certificate, key)

    def attach(self, context: ssl.SSLContext) -> None:
        """Let the handshakes of a context, which has a certificate already, show this one."""

        def choose(connection: ssl.SSLObject, name: str | None, of: ssl.SSLContext) -> None:
            connection.context = self._current()

        context.sni_callback = choose  # also called for clients that name no host

    def _current(self) -> ssl.SSLContext:
        state = self._state()  # before the files are read: what changes meanwhile is seen by the next handshake
        if state != self._seen:
            self._seen = state
            try:
                self._context = load_certificate(*self._files)
            except SettingsError as error:
                _log.warning("tensormeter: %s; the certificate from before stays in use", error)
        return self._context

    def _state(self) -> _State:
        return tuple(_identity(file) for file in self._files)


def _identity(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
