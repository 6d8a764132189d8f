"""Detection of outages: exceptions caused by the network, the disk or the installation rather than by the data.

After an outage, the same data can be delivered. Any other exception from an exporter may be caused by an item that would
fail on every retry.
"""

import errno
import socket
import sqlite3
import ssl
from typing import Final

from tensormeter.errors import SettingsError

__all__ = ["is_outage"]

_DISK: Final = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EDEADLK,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOLCK,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
        errno.ETXTBSY,
    }
)
"""Errors that a disk or a process limit causes. Other errors, such as "name too long", may be caused by an item's key."""

_NETWORK: Final = (ConnectionError, TimeoutError, socket.gaierror, socket.herror, ssl.SSLError)
_UNREACHABLE: Final = frozenset(
    {
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOBUFS,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
    }
)

_DATABASE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
    }
)

_LONGEST_CHAIN: Final = 16


def is_outage(error: BaseException) -> bool:
    """Return whether an exception is caused by something other than the data.

    Such causes are an unreachable receiver, a full, read-only or broken disk, a missing package, or an invalid setting.
    The exception's own causes are examined too, because libraries wrap network errors.
    """
    if isinstance(error, ImportError | SettingsError):
        return True
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _DATABASE
    if isinstance(error, OSError) and error.errno in _DISK:
        return True
    cause: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if cause is None:
            break
        if _is_network(cause):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def _is_network(error: BaseException) -> bool:
    return isinstance(error, _NETWORK) or (isinstance(error, OSError) and error.errno in _UNREACHABLE)
