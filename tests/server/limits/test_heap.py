"""Memory that the server returns to the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import psutil
from tensormeter.server.limits.heap import return_freed_memory

def resident():
    return psutil.Process().memory_info().rss

before = resident()
blocks = [bytes([i % 256]) * 4000 for i in range(25_000)]
blocks = blocks[::1000]
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide themselves")
def test_freed_memory_below_a_block_in_use_is_returned():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    kept, left = map(int, done.stdout.split())
    assert kept > 80e6
    assert left < 10e6
