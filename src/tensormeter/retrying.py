"""Delays before retries: exponential backoff with full jitter.

See "Exponential Backoff And Jitter", Marc Brooker, AWS Architecture Blog, 2015.

Delivery may run in a training process, whose `random` generator is seeded for reproducible results. `backoff.full_jitter` draws
from that generator: a retry would change the training, and ranks with the same seed would retry at the same time. This module gets
its randomness from the operating system.
"""

import math
import random
from collections.abc import Callable, Generator

import backoff

_random = random.SystemRandom()


def full_jitter(delay: float) -> float:
    """Return a random time between 0 and `delay`, in the unit of `delay`. Any thread, and after a fork."""
    return _random.uniform(0, delay)


def retry_delay(
    longest: float,
    requested: float | None = None,
    *,
    at_most: float = math.inf,
    jitter: Callable[[float], float] = full_jitter,
) -> float:
    """Return the seconds to wait before a retry: a random time up to `longest`, but no less than the receiver requested.

    Args:
        longest: Present delay of the exponential backoff, in seconds.
        requested: Seconds that the receiver asked for by `Retry-After` or `RetryInfo`, if it did.
        at_most: Bound of the requested time, in seconds.
        jitter: Function from a delay to a random time.
    """
    return max(jitter(longest), min(requested or 0.0, at_most))


def exponential_delays(first: float, longest: float) -> Generator[float, None, None]:
    """Generate delays in seconds, without jitter, that double from `first` to `longest` and stay there for ever."""
    delays = backoff.expo(base=2, factor=first, max_value=longest)
    next(delays)  # the library's generators yield their first value at the second call
    return delays
