"""Delays before retries: exponential backoff with full jitter.

See "Exponential Backoff And Jitter", Marc Brooker, AWS Architecture Blog, 2015.

Delivery may run in a training process, whose `random` generator is seeded for reproducible results. `backoff.full_jitter` draws
from that generator: a retry would change the training, and ranks with the same seed would retry at the same time. This module gets
its randomness from the operating system.
"""

import random
from collections.abc import Generator

import backoff

_random = random.SystemRandom()


def full_jitter(delay: float) -> float:
    """A random time between 0 and `delay`, in the unit of `delay`. Any thread, and after a fork."""
    return _random.uniform(0, delay)


def exponential_delays(first: float, longest: float) -> Generator[float, None, None]:
    """Generate delays in seconds, without jitter, that double from `first` to `longest` and stay there for ever."""
    delays = backoff.expo(base=2, factor=first, max_value=longest)
    next(delays)  # the library's generators yield their first value at the second call
    return delays
