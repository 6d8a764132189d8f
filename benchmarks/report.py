"""Tables of what was measured, and on what."""

import contextlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
from contenders import PACKAGES
from rich.console import Console
from rich.table import Table


def print_table(title: str, taken: Mapping[str, np.ndarray], *, beside: str) -> None:
    """Percentiles of each contender's samples, and its median as a multiple of another's."""
    table = Table(title=title)
    for column in ("", "p50", "p99", "p99.9", f"p50 beside {beside}"):
        table.add_column(column, justify="right" if column else "left")
    reference = np.median(taken[beside])
    for name, values in taken.items():
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{p999:.1f}", f"{p50 / reference:.2f}x")
    console = Console(width=110)
    console.print(table)
    installed = []
    for package in PACKAGES:
        with contextlib.suppress(Exception):
            installed.append(f"{package} {version(package)}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    console.print(f"{machine}, {', '.join(installed)}")
