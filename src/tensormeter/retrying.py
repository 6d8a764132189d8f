"""Delays before retries: exponential backoff with full jitter.

See "Exponential Backoff And Jitter", Marc Brooker, AWS Architecture Blog, 2015.

Delivery may run in a training process that seeds `random` for reproducible results. `backoff.full_jitter` uses that
generator, so a retry would change the training results, and ranks with the same seed would retry at the same time. This
module uses the operating system's random numbers instead.
"""

import math
import random
from collections.abc import Callable, Generator

import backoff

_random = random.SystemRandom()


def full_jitter(delay: float) -> float:
    """Return a random duration between 0 and `delay`, in the same unit. Safe on any thread and after a fork."""
    return _random.uniform(0, delay)


def retry_delay(
    longest: float,
    requested: float | None = None,
    *,
    at_most: float = math.inf,
    jitter: Callable[[float], float] = full_jitter,
) -> float:
    """Return the seconds to wait before a retry: a random time up to `longest`, but at least the requested time.

    Args:
        longest: Current delay of the exponential backoff in seconds.
        requested: Seconds that the receiver requested with `Retry-After` or `RetryInfo`; None if it did not.
        at_most: Upper limit for `requested`, in seconds.
        jitter: Function that converts a delay to a random time.
    """
    return max(jitter(longest), min(requested or 0.0, at_most))


def exponential_delays(first: float, longest: float) -> Generator[float, None, None]:
    """Yield delays in seconds, without jitter, that double from `first` up to `longest` and then stay constant."""
    delays = backoff.expo(base=2, factor=first, max_value=longest)
    next(delays)  # the library's generators yield their first value on the second call
    return delays
