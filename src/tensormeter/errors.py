"""The exception hierarchy, and a function for error messages. This module imports nothing.

    TensormeterError
    ├── SettingsError      (also a ValueError)  a setting, argument or environment variable is invalid
    ├── UsageError         (also a RuntimeError) a call is invalid at this point
    ├── RingError          a ring file cannot be created or is invalid
    ├── EncodingError      (also a ValueError)  data cannot be encoded or decoded as OTLP
    ├── SpoolError         a run directory or its spool cannot be used
    └── StoreError         the server's store cannot be used

Every message states what failed, which value caused it, and what to do next. Failed delivery never makes `Run.log`
raise, because telemetry must not stop a training script.
"""


class TensormeterError(Exception):
    """Base class of all errors that tensormeter raises on purpose."""


class SettingsError(TensormeterError, ValueError):
    """A setting, an argument or an environment variable has an invalid value."""


class UsageError(TensormeterError, RuntimeError):
    """A call is invalid at this point, such as `tensormeter.log` without a run."""


class RingError(TensormeterError):
    """A ring file cannot be created, or a file is not a ring file of this version."""


class EncodingError(TensormeterError, ValueError):
    """Data cannot be encoded or decoded as OTLP."""


class SpoolError(TensormeterError):
    """A run directory or its spool cannot be used."""


class StoreError(TensormeterError):
    """The experiment server's store cannot be opened, read or written."""


def join_choices(*choices: str) -> str:
    """Join the valid values of an argument for an error message, as in ``a, b or c``."""
    return " or ".join(", ".join(choices).rsplit(", ", 1))
