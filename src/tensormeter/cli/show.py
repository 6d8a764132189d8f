"""The command `tensormeter show`."""

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensormeter.cli.chart import draw_chart
from tensormeter.cli.options import endpoint_option
from tensormeter.cli.provenance import code_facts, print_artifacts, print_code
from tensormeter.cli.terminal import local_time, number, plain, plain_line
from tensormeter.client import Connection, RecordedCode, StoredRun, find_run
from tensormeter.conventions.semconv import MEDIA_KEY, RUN_END
from tensormeter.otlp.batch import STEP_METRIC

__all__ = ["show"]

MAX_CHARTS: Final = 8
MAX_LISTED: Final = 1000
"""Maximum number of metrics whose last values are listed."""
MAX_TRACEBACK: Final = 60
"""Maximum number of lines of a traceback, the last ones."""

_WILDCARD: Final = re.compile(r"[*?\[]")
_PROCESSES_SHOWN: Final = 8

_VARIANT: Final = ("scope", "unit", "kind", "temporality")
"""Fields that distinguish metrics with the same name."""

_MEDIA: Final = ("image", "images", "video", "audio", "figure", "html", "table", "text")
_MEDIA_EVENTS: Final = 1000
_MEDIA_KEYS: Final = 20
_LONGEST_TEXT: Final = 400
"""Maximum length of a text's JSON in characters. Longer texts are not printed."""

STATISTICS: Final = ("system.", "process.", "hw.", "container.", "cpython.", "tensormeter.")
"""Prefixes of automatic metrics. The command does not list them."""


@click.command()
@click.argument("run")
@click.option("--project", help="Project of the run; required if the ID or name exists in several projects.")
@click.option(
    "--metric",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Draw the metrics whose names match this pattern; may be repeated.  [default: one with 'loss' in its name, else the first]",
)
@click.option("--code", "shows_code", is_flag=True, help="Print the uncommitted changes, the source and the packages.")
@endpoint_option
def show(run: str, project: str | None, patterns: tuple[str, ...], shows_code: bool, endpoint: str | None) -> None:
    """Show a run: its configuration, code, the traceback of a failure, last values, artifacts and charts.

    RUN is an ID, the beginning of an ID, or a unique name.
    """
    client = Connection(endpoint)
    summary = find_run(client, run, project, fields="config")
    console = Console()
    stored_run = StoredRun(client, summary)
    code = stored_run.code
    if shows_code:
        print_code(console, code)
        return
    logged, all_shown = _logged(client, summary)
    _print_header(console, summary, code, sum(metric["points"] for metric in logged) if all_shown else None)
    _print_failure(console, client, summary)
    _print_values(console, logged)
    _print_media(client, console, summary)
    if not all_shown:
        console.print(Text(f"only the first {len(logged):,} metrics are listed; list others with --metric"))
    recorded = client.get("runs", summary["id"], "metrics", project=summary["project"], system="true", limit=2)
    if any(metric["name"] != STEP_METRIC for metric in recorded["metrics"]):
        console.print(
            Text("also recorded: GPU, host and process metrics; to draw some, pass for example --metric 'system.cpu.*'")
        )
    print_artifacts(console, stored_run.artifacts())
    if patterns:
        matches = _matching(client, summary, patterns)
    else:
        losses = (metric["name"] for metric in _pages(client, summary, search="loss"))
        first_loss = next((name for name in losses if not name.startswith(STATISTICS)), None)
        matches = [metric["name"] for metric in logged[:1]] if first_loss is None else [first_loss]
    for name in matches[:MAX_CHARTS]:
        document = client.get("runs", summary["id"], "series", project=summary["project"], metric=name, x="step")
        for title, series in _by_variant(name, document["series"]):
            console.print()
            console.print(Text.from_ansi(draw_chart(title, series, console.width, color=console.is_terminal)))
    if len(matches) > MAX_CHARTS:
        console.print(Text(f"{len(matches) - MAX_CHARTS} more metrics match; use a narrower --metric to draw them"))
    if patterns and not matches:
        console.print(Text("no metric matches --metric"))


def _pages(client: Connection, run: dict[str, Any], **query: str) -> Iterator[dict[str, Any]]:
    """Iterate over the matching metrics of a run, reading them page by page."""
    after: str | None = None
    while True:
        page = client.get("runs", run["id"], "metrics", project=run["project"], limit=1000, after=after, **query)
        yield from page["metrics"]
        after = page["next"]
        if after is None:
            return


def _logged(client: Connection, run: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """Return metrics that the training script logged, and whether they are all of them."""
    logged: list[dict[str, Any]] = []
    for metric in _pages(client, run):
        if not metric["name"].startswith(STATISTICS):
            if len(logged) >= MAX_LISTED:
                return logged, False
            logged.append(metric)
    return logged, True


def _matching(client: Connection, run: dict[str, Any], patterns: tuple[str, ...]) -> list[str]:
    """Return the names of metrics that match one of the patterns."""
    names: set[str] = set()
    for pattern in patterns:
        metrics = _pages(client, run, prefix=_WILDCARD.split(pattern, maxsplit=1)[0])
        names.update(metric["name"] for metric in metrics if fnmatchcase(metric["name"], pattern))
    return sorted(names)


def _print_header(console: Console, run: dict[str, Any], code: RecordedCode | None, logged: int | None) -> None:
    """Print facts about a run. `logged` is the number of points that the script logged; None if it is unknown."""
    console.print(Text(plain(f"{run['project']} / {run['name']}"), style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_row("run", Text(plain(run["id"])))
    grid.add_row("state", Text(plain(run["state"])))
    grid.add_row("started", local_time(int(run["started"])))
    grid.add_row("last update", local_time(int(run["last_time"])))
    grid.add_row("processes", _describe_processes(run["processes"]))
    with_others = f"{run['points']:,}"
    grid.add_row(
        "points", with_others if logged is None else f"{logged:,} ({with_others} with steps and system metrics)"
    )
    if run.get("parent") is not None:
        grid.add_row("forked from", Text(plain(f"{run['parent']['run']}@{run['parent']['step']}")))
    labels = {
        "group": run["group"],
        "job type": run.get("job_type"),
        "tags": ", ".join(run["tags"]),
        "notes": run["notes"],
    }
    for name, text in labels.items():
        if text:
            grid.add_row(name, Text(plain(text)))
    if code is not None:
        for label, text in code_facts(code):
            grid.add_row(label, Text(text))
        grid.add_row("code", Text(plain(f"tensormeter show {run['id']} --code")))
    for group, values in (("config", run["config"]), ("summary", run.get("results", {}))):
        for key, value in sorted(_unfolded(values)):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            grid.add_row(Text(plain(f"{group}.{key}")), Text(plain(shown)))
    console.print(grid)


def _unfolded(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the values of a configuration. Names of nested values are joined with dots, as in filters."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _unfolded(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _print_failure(console: Console, client: Connection, run: dict[str, Any]) -> None:
    """Print the traceback of the process that failed first in the latest attempt, if there is one."""
    if run["state"] not in ("failed", "crashed"):
        return
    latest = {process["id"] for process in run["processes"] if process["attempt"] == run["attempt"]}
    page = client.get("runs", run["id"], "events", project=run["project"], name=RUN_END, limit=MAX_LISTED)
    tracebacks = [
        event["body"]["traceback"]
        for event in page["events"]  # newest first
        if event["process"] in latest
        and isinstance(event["body"], dict)
        and isinstance(event["body"].get("traceback"), str)
    ]
    if not tracebacks:
        return
    lines = [plain_line(line) for line in tracebacks[-1].rstrip().split("\n")]
    console.print()
    if len(lines) > MAX_TRACEBACK:
        console.print(Text(f"({len(lines) - MAX_TRACEBACK} lines of the traceback are left out)"))
        lines = lines[-MAX_TRACEBACK:]
    # The exception follows the last frame, which is indented. Its message may have several lines.
    first = next((at for at in range(len(lines) - 1, 0, -1) if lines[at][:1].strip() and lines[at - 1][:1] == " "), -1)
    console.print(Text("\n".join(lines[:first])), soft_wrap=True)
    console.print(Text("\n".join(lines[first:]), style="bold red"), soft_wrap=True)


def _describe_processes(processes: list[dict[str, Any]]) -> Text:
    """Return the number of training processes, with their states if these differ within the latest attempt.

    Processes without a state are agents, which are counted only if there are no other processes.
    """
    training = [process for process in processes if process["state"] is not None] or processes
    latest = max((process["attempt"] for process in training), default=1)
    by_state: dict[str, list[str]] = {}
    for process in sorted(training, key=lambda process: -1 if process["rank"] is None else process["rank"]):
        if process["attempt"] == latest:
            who = process["id"][:8] if process["rank"] is None else f"rank {process['rank']}"
            by_state.setdefault(process["state"], []).append(f"{who} on {process['host']}" if process["host"] else who)
    if len(by_state) < 2:
        return Text(str(len(training)))
    lines = [str(len(training))]
    for state, names in by_state.items():
        more = f" and {len(names) - _PROCESSES_SHOWN} more" if len(names) > _PROCESSES_SHOWN else ""
        lines.append(f"{state}: {', '.join(names[:_PROCESSES_SHOWN])}{more}")
    return Text("\n".join(map(plain, lines)))


def _print_values(console: Console, metrics: list[dict[str, Any]]) -> None:
    if not metrics:
        console.print("no metrics yet")
        return
    several = any(metric["processes"] > 1 for metric in metrics)
    scopes: dict[str, set[str]] = {}
    for metric in metrics:
        scopes.setdefault(metric["name"], set()).update(metric.get("scopes", ()))
    table = Table("metric", box=None, header_style="bold", pad_edge=False)
    if several:
        table.add_column("processes", justify="right")
    table.add_column("last", justify="right")
    table.add_column("unit")
    table.add_column("step", justify="right")
    table.add_column("points", justify="right")
    for metric in metrics:
        sets = metric["attributes"]
        attributes = "".join(f" {key}={value}" for key, value in sorted(sets[0].items()))
        if len(sets) > 1:
            attributes = f" ({len(sets)} attribute sets)"
        named = [scope for scope in metric.get("scopes", ()) if scope]
        scope = f" [{', '.join(named)}]" if len(scopes[metric["name"]]) > 1 and named else ""
        last = metric["kind"].replace("_", " ") if metric["last"] is None else metric["last"]
        table.add_row(
            Text(plain(metric["name"] + attributes + scope)),
            *([str(metric["processes"])] if several else []),
            Text(number(last)),
            Text(plain(metric["unit"])),
            "" if metric["last_step"] is None else f"{metric['last_step']:,}",
            f"{metric['points']:,}",
        )
    console.print()
    console.print(table)


def _print_media(client: Connection, console: Console, run: dict[str, Any]) -> None:
    """List the newest media by kind and key, and print the last short text of each key."""
    kinds: dict[str, dict[str, int]] = {}
    texts: dict[str, str] = {}
    for kind in _MEDIA:
        document = client.get(
            "runs", run["id"], "events",
            project=run["project"], name=f"tensormeter.{kind}", limit=_MEDIA_EVENTS, max_body=_LONGEST_TEXT,
        )  # fmt: skip
        for event in document["events"]:
            key = str(event["attributes"].get(MEDIA_KEY, kind))
            keys = kinds.setdefault(kind, {})
            keys[key] = keys.get(key, 0) + 1
            if kind == "text" and key not in texts:
                texts[key] = str(event["body"].get("text", "")) if isinstance(event["body"], dict) else "(a long text)"
    if not kinds:
        return
    table = Table("media", box=None, header_style="bold", pad_edge=False)
    table.add_column("kind")
    table.add_column("items", justify="right")
    table.add_column("last text")
    for kind, keys in kinds.items():
        for key, items in sorted(keys.items())[:_MEDIA_KEYS]:
            count = f"{items:,}" if items < _MEDIA_EVENTS else f"{items:,} or more"
            table.add_row(Text(plain(key)), kind, count, Text(plain(texts.get(key, "") if kind == "text" else "")))
    console.print()
    console.print(table)
    for kind, keys in kinds.items():
        if len(keys) > _MEDIA_KEYS:
            console.print(Text(f"only {_MEDIA_KEYS} of {len(keys):,} keys with {kind} items are listed"))


def _by_variant(name: str, series: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group series into titled charts. Series that differ in scope, unit, kind or temporality need separate charts."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for item in series:
        groups.setdefault(tuple(item.get(field) or "" for field in _VARIANT), []).append(item)
    differing = [index for index in range(len(_VARIANT)) if len({variant[index] for variant in groups}) > 1]
    titles = {
        variant: ", ".join([name, *(variant[index] for index in differing if variant[index])]) for variant in groups
    }
    return [(titles[variant], group) for variant, group in groups.items()] or [(name, [])]
