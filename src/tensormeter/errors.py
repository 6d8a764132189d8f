"""The error tree. This module imports nothing.

    TensormeterError
    ├── SettingsError      (also a ValueError)  a setting, argument or environment variable is wrong
    ├── UsageError         (also a RuntimeError) a call that makes no sense at this point
    ├── RingError          a ring file cannot be created or is not one
    ├── EncodingError      (also a ValueError)  bytes that are not the OTLP they claim to be
    ├── SpoolError         a run directory or its spool cannot be used
    └── StoreError         the server's store cannot be used

Every message says what failed, the value, and what to do next.
Nothing here is ever raised by `Run.log` because delivery failed: a training script does not stop for telemetry.
"""


class TensormeterError(Exception):
    """Base of every error that tensormeter raises on purpose."""


class SettingsError(TensormeterError, ValueError):
    """A setting, an argument or an environment variable has a value that cannot be used."""


class UsageError(TensormeterError, RuntimeError):
    """A call that makes no sense at this point, such as `tensormeter.log` without a run."""


class RingError(TensormeterError):
    """A ring file could not be created, or a file is not a ring file of this version."""


class EncodingError(TensormeterError, ValueError):
    """Bytes that are not the OTLP message they claim to be."""


class SpoolError(TensormeterError):
    """A run directory or the spool in it cannot be used."""


class StoreError(TensormeterError):
    """The experiment server's store cannot be opened, read or written."""
