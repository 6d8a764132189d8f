"""`tensormeter show`."""

import json
from fnmatch import fnmatchcase
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.chart import draw_chart
from tensormeter.cli.client import ApiClient, endpoint_option
from tensormeter.cli.selector import find_run
from tensormeter.cli.terminal import local_time, number, plain
from tensormeter.otlp.batch import STEP_METRIC

__all__ = ["show"]

MAX_CHARTS: Final = 8
STATISTICS: Final = ("system.", "process.", "hw.", "container.", "tensormeter.")
"""Beginnings of the names of what nobody logged: there is too much of it for a list."""


@click.command()
@click.argument("run")
@click.option("--project", help="Project of the run, where several have one of that name.")
@click.option(
    "--metric",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Metrics to draw; may be repeated.  [default: one whose name has 'loss' in it, else the first]",
)
@endpoint_option
def show(run: str, project: str | None, patterns: tuple[str, ...], endpoint: str | None) -> None:
    """Show a run: its configuration, last values and charts.

    RUN is an id, the beginning of one, or a name that only one run has.
    """
    client = ApiClient(endpoint)
    found = find_run(client, run, project)
    metrics = client.get("runs", found["run_id"], "metrics", project=found["project"])["metrics"]
    console = Console()
    _print_header(console, found)
    logged = [metric for metric in metrics if not metric["metric"].startswith(STATISTICS)]
    _print_values(console, logged)
    if any(metric["metric"] != STEP_METRIC and metric not in logged for metric in metrics):
        console.print(Text("and statistics of GPUs, host and processes: draw some with --metric 'system.cpu.*'"))
    names = list(dict.fromkeys(metric["metric"] for metric in (metrics if patterns else logged)))
    chosen = _choose(names, patterns)
    for name in chosen[:MAX_CHARTS]:
        document = client.get("runs", found["run_id"], "series", project=found["project"], metric=name, x="step")
        console.print()
        console.print(Text.from_ansi(draw_chart(name, document["series"], console.width, color=console.is_terminal)))
    if len(chosen) > MAX_CHARTS:
        console.print(Text(f"{len(chosen) - MAX_CHARTS} more metrics match; narrow --metric to see them"))
    if patterns and not chosen:
        console.print(Text("no metric matches --metric"))


def _print_header(console: Console, run: dict[str, Any]) -> None:
    console.print(Text(plain(f"{run['project']} / {run['name']}"), style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_row("run", Text(plain(run["run_id"])))
    grid.add_row("state", Text(plain(run["state"])))
    grid.add_row("created", local_time(run["created"]))
    grid.add_row("updated", local_time(run["updated"]))
    grid.add_row("processes", str(len(run["processes"])))
    grid.add_row("points", f"{run['points']:,}")
    for key, value in sorted(run["config"].items()):
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        grid.add_row(Text(plain(f"config.{key}")), Text(plain(shown)))
    console.print(grid)


def _print_values(console: Console, metrics: list[dict[str, Any]]) -> None:
    if not metrics:
        console.print("no metrics yet")
        return
    several = len({metric["process"] for metric in metrics}) > 1
    table = Table("metric", box=None, header_style="bold", pad_edge=False)
    if several:
        table.add_column("process")
    table.add_column("last", justify="right")
    table.add_column("unit")
    table.add_column("step", justify="right")
    table.add_column("points", justify="right")
    for metric in metrics:
        last = metric["last"] or {"value": "", "step": None}
        attributes = "".join(f" {key}={value}" for key, value in sorted(metric["attributes"].items()))
        table.add_row(
            Text(plain(metric["metric"] + attributes)),
            *([Text(plain(metric["process"]))] if several else []),
            Text(number(last["value"])),
            Text(plain(metric["unit"])),
            "" if last["step"] is None else f"{last['step']:,}",
            f"{metric['points']:,}",
        )
    console.print()
    console.print(table)


def _choose(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    if patterns:
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return ([name for name in names if "loss" in name.lower()] or names)[:1]
