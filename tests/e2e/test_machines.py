"""Attempts at one run on several machines: hosts that share a state directory, machines that share nothing but the server,
and machines that are offline. Each machine is a process with a separate environment.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import run_python
from support.servers import RestartableServer
from support.waiting import wait_for

TRAIN = """
import os, sys, tensormeter
first, last, resume, end = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume", sys.argv[4]
run = tensormeter.init("attempts", id="run", resume=resume)
for value in range(first, last):
    run.log({"loss": float(value)})
print("logged", flush=True)
if end == "wait":
    sys.stdin.readline()
run.finish()
"""


class Machine:
    """A host with a state directory, which others may share."""

    def __init__(self, folder: Path, environment: dict[str, str], name: str, state: str | None = None) -> None:
        self._folder, self._host = folder, name
        buffers = Path(environment["TENSORMETER_BUFFER_DIR"]) / name
        buffers.mkdir(mode=0o700, exist_ok=True)
        dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_", "TORCHELASTIC_")
        self._environment = {key: value for key, value in environment.items() if not key.startswith(dropped)} | {
            "TENSORMETER_DIR": str(folder / f"state-{state or name}"),
            "TENSORMETER_BUFFER_DIR": str(buffers),
        }

    def start(
        self, values: range, *, resume: bool = False, end: str = "finish", **variables: str
    ) -> subprocess.Popen[str]:
        arguments = [values.start, values.stop, "resume" if resume else "begin", end]
        command = [sys.executable, str(self._folder / "train.py"), *map(str, arguments)]
        if self._host.startswith("host-"):
            command = ["unshare", "-u", "sh", "-c", f'hostname {self._host}; exec "$@"', "sh", *command]
        return subprocess.Popen(
            command, env=self._environment | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def train(self, values: range, *, resume: bool = False, **variables: str) -> None:
        finish(self.start(values, resume=resume, **variables))

    def sync(self) -> None:
        run_python("-m", "tensormeter", "sync", environment=self._environment, check=True)


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", 300)
    assert process.returncode == 0


def logged(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """A process that has logged what it has to log."""
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)


def line(server: RestartableServer) -> list[tuple[int, list[float], list[float]]]:
    """The effective line: for each series its attempt, steps and values."""
    series = server.get("/runs/run/series", metric="loss").get("series", [])
    return [(line["attempt"], line["step"], line["value"]) for line in series]


def attempts(server: RestartableServer) -> list[int]:
    return sorted(process["attempt"] for process in server.get("/runs/run").get("processes", []))


def counted(last: int) -> tuple[list[int], list[float]]:
    return list(range(last)), [float(value) for value in range(last)]


needs_hosts = pytest.mark.skipif(
    os.getuid() != 0 or subprocess.run(["unshare", "-u", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root and unshare, to have several host names",
)


@pytest.fixture
def folder(tmp_path: Path, server: RestartableServer) -> Path:
    server.start()
    folder = tmp_path / "machines"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    return folder


def test_machines_that_share_only_the_server_go_on_from_each_other(folder, environment, server):
    here, there = (Machine(folder, environment, name) for name in ("here", "there"))
    here.train(range(5))
    there.train(range(5, 8), resume=True)
    here.train(range(8, 11))
    there.train(range(11, 12))
    assert attempts(server) == [1, 2, 3, 4]
    assert line(server) == [(4, *counted(12))]


def test_offline_attempts_are_numbered_when_they_are_delivered(folder, environment, server):
    here, there = (Machine(folder, environment, name) for name in ("here", "there"))
    there.train(range(5, 8), resume=True, TENSORMETER_MODE="offline")
    there.train(range(8, 10), TENSORMETER_MODE="offline")
    here.train(range(5))
    there.sync()
    there.train(range(10, 12))
    assert attempts(server) == [1, 2, 3, 4]
    assert line(server) == [(4, *counted(12))]


def test_offline_attempts_of_a_machine_stay_apart_where_another_one_was_first(folder, environment, server):
    here, there = (Machine(folder, environment, name) for name in ("here", "there"))
    there.train(range(5, 8), TENSORMETER_MODE="offline")
    there.train(range(8, 10), resume=True, TENSORMETER_MODE="offline")
    here.train(range(5))
    there.sync()
    assert attempts(server) == [1, 2, 3]


def test_a_server_that_comes_later_gives_the_number(folder, environment, server):
    here, there = (Machine(folder, environment, name) for name in ("here", "there"))
    here.train(range(5))
    server.stop()
    process = logged(there.start(range(5, 8), resume=True, end="wait"))
    server.start()
    finish(process)
    wait_for(lambda: attempts(server) == [1, 2], "both attempts arrive")
    wait_for(lambda: line(server) == [(2, *counted(8))], "the second goes on behind the first")


def test_a_run_with_a_known_id_continues_without_resume(folder, environment, server):
    here, there = (Machine(folder, environment, name) for name in ("here", "there"))
    here.train(range(5))
    there.train(range(5, 8))
    assert attempts(server) == [1, 2]
    assert line(server) == [(2, *counted(8))]


def test_ranks_that_begin_at_once_on_machines_that_share_nothing_are_one_attempt(folder, environment, server):
    Machine(folder, environment, "before").train(range(3))
    ranks = []
    for rank in range(4):
        machine = Machine(folder, environment, f"machine-{rank}")
        variables = {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
        ranks.append(machine.start(range(3, 5), resume=True, end="wait", **variables))
    for process in ranks:
        logged(process)
    wait_for(lambda: attempts(server) == [1, 2, 2, 2, 2], "all ranks are of one attempt")
    for process in ranks:
        finish(process)
    assert server.state("run") == "finished"


def test_an_agent_that_is_killed_changes_neither_number_nor_steps(folder, environment, server):
    here, there = (Machine(folder, environment, name) for name in ("here", "there"))
    here.train(range(5))
    process = logged(there.start(range(5, 8), resume=True, end="wait"))
    wait_for(lambda: attempts(server) == [1, 2], "the second attempt is known")
    (lock,) = (folder / "state-there").glob("runs/run@*/agent.lock")
    os.kill(int(lock.read_text()), signal.SIGKILL)
    finish(process)
    wait_for(lambda: line(server) == [(2, *counted(8))], "the line is whole")
    assert attempts(server) == [1, 2]


def test_a_resumed_run_goes_on_behind_rows_that_a_killed_one_left_in_its_ring(folder, environment, server):
    here = Machine(folder, environment, "here")
    process = logged(here.start(range(5), end="wait", TENSORMETER_SCHEDULE_DELAY="30"))
    (lock,) = (folder / "state-here").glob("runs/run@*/agent.lock")
    wait_for(lambda: lock.read_text().strip().isdigit(), "the agent runs")
    os.kill(int(lock.read_text()), signal.SIGKILL)
    kill(process)
    here.train(range(5, 8))
    wait_for(lambda: line(server) == [(2, *counted(8))], "the line is whole")


@needs_hosts
@pytest.mark.parametrize("alive", [True, False], ids=["while the first lives", "after the first was killed"])
def test_hosts_that_share_a_directory_are_ranks_of_one_attempt(folder, environment, server, alive):
    alpha, beta = (Machine(folder, environment, name, "shared") for name in ("host-alpha", "host-beta"))
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"} for rank in range(2)]
    first = logged(alpha.start(range(3), end="wait", **ranks[0]))
    if not alive:
        kill(first)
    second = logged(beta.start(range(3), end="wait", **ranks[1]))
    if alive:
        kill(first)
    finish(second)
    wait_for(lambda: server.state("run") == "crashed", "the run has crashed")
    assert attempts(server) == [1, 1]
    assert [len(steps) for _, steps, _ in line(server)] == [3, 3]
    # A rank that comes again begins another attempt, which the other one joins.
    again = [alpha.start(range(3, 5), resume=True, end="wait", **ranks[0])]
    logged(again[0])
    again.append(logged(beta.start(range(3, 5), resume=True, end="wait", **ranks[1])))
    for process in again:
        finish(process)
    assert attempts(server) == [1, 1, 2, 2]
    assert [(attempt, steps) for attempt, steps, _ in line(server)] == [(2, list(range(5)))] * 2
    assert server.state("run") == "finished"


@needs_hosts
def test_processes_without_ranks_on_hosts_that_share_a_directory_are_one_attempt_while_one_lives(
    folder, environment, server
):
    alpha, beta, gamma = (Machine(folder, environment, f"host-{name}", "shared") for name in ("alpha", "beta", "gamma"))
    first = logged(alpha.start(range(3), end="wait"))
    beta.train(range(3))
    finish(first)
    assert attempts(server) == [1, 1]
    gamma.train(range(3, 5), resume=True)
    assert attempts(server) == [1, 1, 2]


@needs_hosts
def test_a_host_that_shares_a_directory_may_be_the_last_that_asks_for_the_number(folder, environment, server):
    """The others have ended by then. All the server sees is that none of them lives."""
    Machine(folder, environment, "before").train(range(3))
    alpha, beta = (Machine(folder, environment, f"host-{name}", "shared") for name in ("alpha", "beta"))
    first = logged(alpha.start(range(3, 5), end="wait", resume=True, TENSORMETER_MODE="offline"))
    beta.train(range(3, 5))
    finish(first)
    assert attempts(server) == [1, 2]
    alpha.sync()
    assert attempts(server) == [1, 2, 2]
    alpha.train(range(5, 7), resume=True)
    assert attempts(server) == [1, 2, 2, 3]


@needs_hosts
def test_attempts_of_hosts_that_share_a_directory_stay_apart_in_any_order_of_delivery(folder, environment, server):
    """The second host's is the server's first, as the first host's is here."""
    alpha, beta = (Machine(folder, environment, f"host-{name}", "shared") for name in ("alpha", "beta"))
    alpha.train(range(3), TENSORMETER_MODE="offline")
    beta.train(range(3, 5))
    alpha.sync()
    assert attempts(server) == [1, 2]
