"""A trainer that is told to end (SIGTERM), and goes on from its last checkpoint: one line, and nothing deleted."""

import signal
import subprocess
import sys
from pathlib import Path

from support.processes import run_python
from support.servers import RestartableServer
from support.waiting import wait_for

SCRIPT = Path(__file__).with_name("preempted.py")


def test_a_preempted_run_goes_on(tmp_path: Path, server: RestartableServer, environment: dict[str, str]) -> None:
    server.start()
    environment["CHECKPOINT"] = str(tmp_path / "checkpoint")
    preempt(environment, 57)
    wait_for(lambda: server.state("resumed") == "preempted", "the run is preempted")
    wait_for(lambda: points(server) >= 57, "its points are there")
    before = line(server)
    assert before == [(1, list(range(57)), [1 / (1 + step) for step in range(57)])]

    preempt(environment, 83)  # from step 50 on
    wait_for(lambda: server.get("/runs/resumed")["attempt"] == 2, "the second attempt has begun")
    wait_for(lambda: server.state("resumed") == "preempted", "the run is preempted again")
    train(environment, 100)  # from step 80 on
    wait_for(lambda: server.state("resumed") == "finished", "the run is finished")
    wait_for(lambda: points(server) >= 57 + 33 + 20, "its points are there")

    whole = list(range(100))
    assert line(server) == [(3, whole, [1 / (1 + step) for step in whole])]
    assert line(server, "attempt") == [(3, whole, [1.0] * 50 + [2.0] * 30 + [3.0] * 20)]
    apart = [(number, steps) for number, steps, _ in line(server, attempt="all")]
    assert sorted(apart) == [(1, list(range(57))), (2, list(range(50, 83))), (3, list(range(80, 100)))]
    assert line(server, attempt="1") == before
    details = server.get("/runs/resumed")
    assert (details["attempt"], details["losses"]) == (3, {})
    summary = details["summary"]["loss"]
    assert (summary["count"], summary["last_step"]) == (57 + 33 + 20, 99)


def line(server: RestartableServer, metric: str = "loss", **query: str) -> list[tuple[int, list[int], list[float]]]:
    document = server.get("/runs/resumed/series", metric=metric, **query)
    return [(series["attempt"], series["step"], series["value"]) for series in document["series"]]


def points(server: RestartableServer) -> int:
    """The number of points of each of the two metrics."""
    summary = server.get("/runs/resumed")["summary"]
    return min(summary.get(metric, {}).get("count", 0) for metric in ("loss", "attempt"))


def train(environment: dict[str, str], last: int) -> None:
    run_python(SCRIPT, last, environment=environment, check=True)


def preempt(environment: dict[str, str], last: int) -> None:
    """Train up to a step, then be told to end."""
    command = [sys.executable, str(SCRIPT), str(last), "wait"]
    trainer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(300) == -signal.SIGTERM
    finally:
        trainer.kill()
        trainer.communicate()
