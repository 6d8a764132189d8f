"""Statistics of the node, from the machine to the server's API, while trainers run, hang, and end."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from support.optional import needs_torch
from support.ports import reserve_port
from support.processes import ROOT, run_python
from support.servers import RestartableServer
from support.trainers import TrainingProcess
from support.waiting import wait_for

SCRIPT = Path(__file__).with_name("trainers.py")
RUN = "watched"

# A gauge, because a sum would be as good, but gauges are the simplest of all metrics for a server.
BEAT = "tensormeter.sensor.sample.duration"


@pytest.fixture
def start(environment: dict[str, str], server: RestartableServer) -> Iterator[Callable[[], TrainingProcess]]:
    """Starts trainers of one run, with a server and quick samples."""
    environment["TENSORMETER_SAMPLE_INTERVAL"] = "0.1"
    server.start()
    trainers: list[TrainingProcess] = []

    def begin() -> TrainingProcess:
        trainers.append(TrainingProcess([str(SCRIPT), RUN], environment))
        trainers[-1].expect(str(trainers[-1].pid))
        return trainers[-1]

    yield begin
    for trainer in trainers:
        trainer.kill()


def series(server: RestartableServer, metric: str) -> list[dict]:
    return server.get(f"/runs/{RUN}/series", metric=metric, x="time").get("series", [])


def beats(server: RestartableServer) -> int:
    """Samples of the host that the server has."""
    heartbeats = [item for item in series(server, BEAT) if item["attributes"]["tensormeter.sensor"] == "host"]
    assert len(heartbeats) <= 1
    return sum(len(item["value"]) for item in heartbeats)


def of_trainers(server: RestartableServer) -> set[int]:
    """The pids with processor utilization as trainers."""
    return {
        item["attributes"]["process.pid"]
        for item in series(server, "process.cpu.utilization")
        if item["attributes"]["tensormeter.process.role"] == "trainer"
    }


def test_two_trainers_of_a_node_have_one_set_of_statistics(
    start: Callable[[], TrainingProcess], server: RestartableServer
) -> None:
    first, second = start(), start()
    wait_for(lambda: of_trainers(server) == {first.pid, second.pid}, "statistics of both trainers are there")
    before = beats(server)
    wait_for(lambda: beats(server) > before, "they go on")
    memory = series(server, "system.memory.utilization")
    assert len({item["process"] for item in memory}) == 1
    assert len({tuple(item["attributes"].items()) for item in memory}) == len(memory)
    (used,) = [item for item in memory if item["attributes"] == {"system.memory.state": "used"}]
    total = psutil.virtual_memory().total
    assert 0 < used["value"][-1] < 1
    assert abs(used["value"][-1] - psutil.virtual_memory().used / total) < 0.2
    assert used["time"] == sorted(set(used["time"]))
    # One trainer less changes nothing for the other.
    first.finish()
    before = beats(server)
    wait_for(lambda: beats(server) > before + 1, "statistics go on with the second trainer")
    second.finish()
    wait_for(lambda: server.state(RUN) == "finished", "the run is over")
    processes = {item["process"] for item in series(server, BEAT)}
    assert processes == {used["process"]}


def test_a_stopped_trainer_still_has_statistics(
    start: Callable[[], TrainingProcess], server: RestartableServer
) -> None:
    trainer = start()
    wait_for(lambda: of_trainers(server) == {trainer.pid}, "statistics of the trainer are there")
    os.kill(trainer.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: psutil.Process(trainer.pid).status() == psutil.STATUS_STOPPED, "the trainer is stopped")
        before, utilization = beats(server), len(series(server, "process.cpu.utilization")[0]["value"])
        wait_for(lambda: beats(server) >= before + 20, "statistics of the host go on")
        assert len(series(server, "process.cpu.utilization")[0]["value"]) > utilization
    finally:
        os.kill(trainer.pid, signal.SIGCONT)
    trainer.finish()


@needs_torch
def test_the_demo_shows_statistics(tmp_path: Path, environment: dict[str, str]) -> None:
    """Those of the demo's own run, through the API of its server."""
    environment["TENSORMETER_SAMPLE_INTERVAL"] = "0.1"
    server = RestartableServer(tmp_path, environment, port=reserve_port())
    options = ["--once", "--folder", tmp_path, "--port", reserve_port(), "--", "--epochs", "2"]
    done = run_python(ROOT / "examples/demo.py", *options, environment=environment, check=True)
    # They do not crowd out what was logged.
    assert "GPU, host and process metrics" in done.stdout
    assert "system.cpu.utilization" not in done.stdout
    server.start()  # on the data that the demo has left
    (run,) = server.get("/runs", project="digits")["runs"]
    metrics = server.get(f"/runs/{run['id']}/metrics")["metrics"]
    names = {metric["name"] for metric in metrics}
    server.stop()
    assert {
        "train/loss",
        "system.cpu.utilization",
        "system.memory.utilization",
        "system.memory.usage",
        "process.cpu.time",
        BEAT,
    } <= names, json.dumps(sorted(names))
