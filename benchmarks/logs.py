"""Ingest of log lines, their size on disk, and the time of pages and searches, on both stores.

    `python benchmarks/logs.py [--lines 1000000] [--store sqlite,clickhouse]`

ClickHouse is chDB, which runs ClickHouse in a Python process and executes one statement at a time.
"""

import argparse
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from servers import PROJECT, T0, Tensormeter

from tensormeter.otlp.batch import Event
from tensormeter.otlp.encode import encode_events

RUN = "printed"
BATCH = 5_000
FIRST = 100_000
"""Number of lines whose ingest is measured."""

TESTS = Path(__file__).parents[1] / "tests"


def lines(count: int, first: int) -> Iterator[Event]:
    """Yield lines as a training script prints them: a progress line with numbers, and now and then a log record."""
    chance = random.Random(first)
    for number in range(first, first + count):
        moment = T0 + number * 10**7
        if number % 50 == 0:
            text = f"saved checkpoint to /runs/experiment-17/step-{number:07}.pt"
            yield Event("", moment, text, {"code.line.number": 212}, severity_number=9, severity_text="INFO")
        else:
            loss, speed = chance.random() * 3, chance.randrange(40_000, 60_000)
            text = f"step {number:>8}/1000000  loss {loss:.6f}  grad_norm {loss / 7:.4f}  lr 3.00e-04  {speed} tokens/s"
            yield Event("", moment, text, {"log.iostream": "stdout"}, severity_number=9)


class OnClickHouse(Tensormeter):
    """A server whose store is the ClickHouse on a port."""

    def __init__(self, folder: Path, port: int) -> None:
        self._port = port
        super().__init__(folder)

    def arguments(self) -> list[str]:
        return ["--store", f"clickhouse://127.0.0.1:{self._port}/bench"]


@contextmanager
def clickhouse(folder: Path) -> Iterator[int]:
    """Start chDB behind ClickHouse's HTTP interface, and yield its port."""
    code = "import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
    command = [sys.executable, "-c", code, str(TESTS), "support.clickhouse_server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def send(server: Tensormeter, first: int, count: int) -> float:
    """Send lines in requests of 5,000, and return the seconds that the server took."""
    resource = {
        "service.name": PROJECT,
        "service.instance.id": "p0",
        "tensormeter.run.id": RUN,
        "tensormeter.rank": 0,
    }
    taken = 0.0
    for start in range(first, first + count, BATCH):
        body = encode_events(resource, [*lines(min(BATCH, first + count - start), start)])
        began = time.perf_counter()
        headers = {"Content-Type": "application/x-protobuf", "Tensormeter-Batch-Id": f"b{start}"}
        answer = server.http.request("POST", f"{server.url}/v1/logs", body=body, headers=headers)
        assert answer.status == 200, answer.data[:500]
        taken += time.perf_counter() - began
    return taken


def ask(server: Tensormeter, repeat: int = 7, **parameters: str) -> tuple[float, int, bool]:
    """Return the median time of a request in milliseconds, its number of lines, and whether its time limit ended it."""
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        answer = server.http.request("GET", f"{server.url}/api/v1/runs/{RUN}/logs", fields=parameters)
        assert answer.status == 200, answer.data[:500]
        taken.append(1000 * (time.perf_counter() - began))
    document = answer.json()
    return statistics.median(taken), len(document["lines"]), document.get("stopped", False)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(server: Tensormeter, data: Path, count: int, table: Table, store: str) -> None:
    seconds = send(server, 0, FIRST)
    table.add_row(f"{store}: lines/s", f"{FIRST / seconds:,.0f}")
    send(server, FIRST, count - FIRST)
    text = sum(len(str(line.body)) for line in lines(20_000, 0)) / 20_000
    table.add_row(f"{store}: bytes per line of {text:.0f} characters on disk", f"{size_of(data) / count:.0f}")
    table.add_row(f"{store}: resident MiB", f"{server.rss():.0f}")
    page = f"{T0 + count // 2 * 10**7}-0"
    for what, parameters in (
        ("newest page of 1,000", dict[str, str]()),
        ("page of 1,000 in the middle", {"before": page}),
        ("100 lines of one severity", {"severity": "9", "limit": "100"}),
        ("search: found in the newest lines", {"search": "loss 1.00", "limit": "100"}),
        ("search: in the oldest line only", {"search": "step-0000050", "limit": "100"}),
        ("search: nowhere", {"search": "out of memory", "limit": "100"}),
        ("search: nowhere, of one rank", {"search": "out of memory", "rank": "0", "limit": "100"}),
    ):
        taken, found, stopped = ask(server, **parameters)
        table.add_row(f"{store}: {what}", f"{taken:.0f} ms, {found} lines{', stopped' if stopped else ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--store", default="sqlite,clickhouse")
    given = parser.parse_args()
    console = Console(width=110)
    table = Table("", "", title=f"{given.lines:,} log lines in one run")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "sqlite" in given.store:
            server = Tensormeter(folder / "sqlite")
            measure(server, folder / "sqlite", given.lines, table, "SQLite")
            server.stop()
        if "clickhouse" in given.store:
            with clickhouse(folder / "chdb") as port:
                server = OnClickHouse(folder / "clickhouse", port)
                measure(server, folder / "chdb", given.lines, table, "ClickHouse")
                server.stop()
    console.print(table)
    console.print(f"{platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
