"""Tables of results, with the machine and the versions of the packages."""

import contextlib
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
from contenders import PACKAGES
from rich.console import Console
from rich.table import Table


def print_table(title: str, taken: Mapping[str, np.ndarray], *, beside: str) -> None:
    """Print percentiles of each contender's samples, and its median relative to the contender `beside`."""
    table = Table(title=title)
    for column in ("", "p50", "p99", "p99.9", f"p50 relative to {beside}"):
        table.add_column(column, justify="right" if column else "left")
    reference = np.median(taken[beside])
    for name, values in taken.items():
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{p999:.1f}", f"{p50 / reference:.2f}x")
    print_on_machine(table)


def print_paired_table(
    title: str,
    taken: Mapping[str, np.ndarray],
    ratios: Mapping[str, np.ndarray],
    processor: Mapping[str, float],
    *,
    beside: str,
) -> None:
    """Print percentiles of each contender's samples, the median of its paired ratios, and its processor time.

    The median has a 95% confidence interval from order statistics, which does not depend on the ratios' distribution.
    """
    table = Table(title=title)
    for column in ("", "p50", "p99", "p99.9", f"relative to {beside}", "95 %", "processor time"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in taken.items():
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        row = [name, f"{p50:.3f}", f"{p99:.2f}", f"{p999:.1f}"]
        if name in ratios:
            ordered = np.sort(ratios[name])
            away = 0.98 * math.sqrt(len(ordered))  # 1.96 standard deviations of a binomial distribution
            low = ordered[max(0, math.floor(len(ordered) / 2 - away))]
            high = ordered[min(len(ordered) - 1, math.ceil(len(ordered) / 2 + away) - 1)]
            row += [f"{np.median(ordered):.3f}x", f"{low:.3f} to {high:.3f}", f"{processor[name]:.3f}x"]
        table.add_row(*row)
    print_on_machine(table)


def print_on_machine(table: Table) -> None:
    """Print a table, the machine, and the versions of the measured packages."""
    console = Console(width=110)
    console.print(table)
    installed = []
    for package in PACKAGES:
        with contextlib.suppress(Exception):
            installed.append(f"{package} {version(package)}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    console.print(f"{machine}, {', '.join(installed)}")
