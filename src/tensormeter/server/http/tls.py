"""The server's TLS certificate, which is reloaded when its files change."""

import logging
import os
import ssl
from pathlib import Path

from tensormeter.errors import SettingsError

__all__ = ["Certificate", "load_certificate"]

_log = logging.getLogger(__name__)

_State = tuple[tuple[int, int, int, int] | None, ...]


def load_certificate(certificate: Path, key: Path) -> ssl.SSLContext:
    """Create a TLS context with the certificate.

    Args:
        certificate: PEM file with the certificate and its intermediate certificates.
        key: PEM file with the private key, without a passphrase.

    Raises:
        SettingsError: The files cannot be read, or the key does not match the certificate.
    """

    def no_passphrase() -> str:
        raise SettingsError(f"tls_key: {key} has a passphrase; store the key without one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except SettingsError:
        raise
    except OSError as error:  # ssl.SSLError is a subclass
        raise SettingsError(
            f"tls_cert, tls_key: {certificate} and {key} are not a certificate and its key in PEM ({error.strerror or error})"
        ) from None
    return context


class Certificate:
    """Certificate that is reloaded for new connections when its files change. Open connections keep the old one.

    Each handshake makes two `stat` calls. If changed files are invalid, the last valid certificate remains in use, and
    one warning is logged per change. For one thread.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load the certificate. See `load_certificate` for the arguments and errors."""
        self._files = certificate, key
        self._seen = self._state()
        self._context = load_certificate(certificate, key)

    def attach(self, context: ssl.SSLContext) -> None:
        """Use this certificate in the handshakes of `context`, which must already have a certificate."""

        def choose(connection: ssl.SSLObject, name: str | None, of: ssl.SSLContext) -> None:
            connection.context = self._current()

        context.sni_callback = choose  # also called for clients that send no host name

    def _current(self) -> ssl.SSLContext:
        state = self._state()  # read before the files, so that the next handshake detects a change in between
        if state != self._seen:
            self._seen = state
            try:
                self._context = load_certificate(*self._files)
            except SettingsError as error:
                _log.warning("tensormeter: %s; the previous certificate stays in use", error)
        return self._context

    def _state(self) -> _State:
        return tuple(_identity(file) for file in self._files)


def _identity(file: Path) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
