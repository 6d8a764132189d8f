"""The main job: every value that real training logs comes out of the server, once, unchanged."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.optional import needs_torch
from support.ports import reserve_port
from support.processes import ROOT, run_python
from support.servers import Points, RestartableServer
from support.waiting import wait_for

pytestmark = needs_torch
EPOCHS = "20"
STEPS = 240


def start_training(environment: dict[str, str], record: Path, epochs: str = EPOCHS) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "examples/digits.py"), "--epochs", epochs, "--record", str(record)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def run_id_of(training: subprocess.Popen[str]) -> str:
    assert training.stdout is not None
    return training.stdout.readline().split()[1]


def finish(training: subprocess.Popen[str]) -> None:
    _, _ = training.communicate(timeout=900)
    assert training.returncode == 0


def recorded(path: Path) -> Points:
    """All that the training script has kept aside."""
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return Counter((metric, int(step), float.fromhex(value).hex()) for metric, step, value in rows)


def assert_unchanged(server: RestartableServer, run_id: str, record: Path) -> None:
    expected = recorded(record)
    # What the script is there to show: every step, an infinity, a NaN, a metric of some steps only, steps out of order.
    assert sum(1 for metric, _, _ in expected if metric == "train/loss") >= STEPS
    assert ("eval/best_loss", 0, "inf") in expected
    assert ("train/gradient_cosine", 0, "nan") in expected
    assert 0 < sum(1 for metric, _, _ in expected if metric == "eval/averaged_accuracy") < STEPS / 10
    names = ("train/", "eval/")  # the rest (phases, distributions) the script cannot keep aside
    wait_for(lambda: server.points(run_id, *names).total() >= expected.total(), "every point is there")
    points = server.points(run_id, *names)
    assert points == expected
    assert set(points.values()) == {1}


def test_the_demo_stores_every_value_unchanged(tmp_path: Path, environment: dict[str, str]) -> None:
    record = tmp_path / "record"
    port = reserve_port()
    demo = run_python(
        ROOT / "examples/demo.py",
        "--once",
        "--folder",
        tmp_path,
        "--port",
        port,
        "--",
        "--epochs",
        EPOCHS,
        "--record",
        record,
        environment=environment,
        check=True,
    )
    assert f"http://127.0.0.1:{port}" in demo.stdout
    assert "train/loss" in demo.stdout
    run_id = next(line.split()[1] for line in demo.stdout.splitlines() if line.startswith("run "))
    # The demo has stopped its server; what it stored must be there for the next one.
    server = RestartableServer(tmp_path, environment, port)
    server.start()
    try:
        wait_for(lambda: server.state(run_id) == "finished", "the run is delivered")
        assert_unchanged(server, run_id, record)
    finally:
        server.stop()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_server_that_starts_after_training_gets_every_value(
    tmp_path: Path, server: RestartableServer, environment: dict[str, str], mode: str
) -> None:
    record = tmp_path / "record"
    environment |= {"TENSORMETER_MODE": mode, "TENSORMETER_FINISH_TIMEOUT": "1"}
    if mode == "offline":
        del environment[
            "TENSORMETER_ENDPOINT"
        ]  # the user has not chosen one, so the server that starts here takes the run
    training = start_training(environment, record)
    run_id = run_id_of(training)
    finish(training)
    server.start()
    wait_for(lambda: server.state(run_id) == "finished", "the run is delivered to a server that came later")
    assert_unchanged(server, run_id, record)
    wait_for(lambda: not list((tmp_path / "runs" / "runs").glob(f"{run_id}@*")), "nothing is left behind")


def test_a_server_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, server: RestartableServer, environment: dict[str, str]
) -> None:
    record = tmp_path / "record"
    server.start()
    training = start_training(environment, record, epochs="60")
    run_id = run_id_of(training)

    def points() -> int:
        return int(server.get(f"/runs/{run_id}").get("points", 0))

    for _ in range(3):
        before = points()
        wait_for(lambda before=before: points() > before, "points arrive")
        assert training.poll() is None, "training ended before the server was killed: make it longer"
        server.kill()
        server.start()
    finish(training)
    wait_for(lambda: server.state(run_id) == "finished", "the run is delivered")
    assert_unchanged(server, run_id, record)
