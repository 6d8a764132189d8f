"""A training process, its agent and a receiver. Each of them may die or be away."""

import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from support.agents import agent_lives, kill_agents, standby_of
from support.processes import run_python
from support.trainers import TrainingProcess, named_settings, training_environment
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.sync import sync_runs
from tensormeter.otlp.decode import decode_metrics


class Trainer(TrainingProcess):
    """The process of `driven_trainer.py`."""

    def __init__(self, environment):
        super().__init__([str(Path(__file__).with_name("driven_trainer.py"))], environment)
        self.expect("ok")

    def tell(self, command):
        self.write(command)
        self.expect("ok")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def environment(tmp_path, receiver):
    return training_environment(tmp_path, receiver.url, "driven")


@pytest.fixture
def start(environment, state):
    """Starts trainers, and kills those that are left at the end, with their agents."""
    trainers = []

    def start(**settings):
        trainers.append(Trainer(environment | named_settings(settings)))
        return trainers[-1]

    yield start
    for trainer in trainers:
        trainer.kill()
    kill_agents(state)


@pytest.fixture
def agent(state, wait_for):
    """Gives the process id of the only run's agent, once it has one."""

    def agent(other_than=None):
        def pid():
            return next((run.agent_pid() for run in list_runs(state)), None)

        wait_for(lambda: pid() not in (None, other_than), "an agent that handles signals")
        return pid()

    return agent


@pytest.fixture
def gone(state, tmp_path, wait_for):
    """Waits until the run directory and its rings are gone."""

    def gone():
        wait_for(lambda: not [*(state / "runs").glob("*@*")], "the run directory is gone")
        assert not list((tmp_path / "rings").rglob("*.ring"))
        assert not list((tmp_path / "rings").rglob("*.lock"))

    return gone


def expected(*ranges):
    """Every row once."""
    return Counter((step, (("loss", step / 7), ("n", float(step)))) for steps in ranges for step in steps)


def test_everything_arrives_once_and_nothing_stays(start, receiver, gone):
    trainer = start()
    trainer.tell("log 0 3000")
    trainer.tell("finish")
    assert receiver.rows() == expected(range(3000))
    assert trainer.end() == (0, "")
    gone()
    assert receiver.events() == [
        ("tensormeter.run.start", {"config": {"lr": 0.1, "path": "a\\udc80"}}),
        ("tensormeter.run.end", {"state": "finished", "message": "", "dropped": {}}),
    ]


@pytest.mark.parametrize(
    ("command", "state_told"), [("finish failed", "failed"), ("raise", "failed"), ("log 5 6", "finished")]
)
def test_how_a_run_ended(start, receiver, gone, command, state_told):
    trainer = start()
    trainer.tell("log 0 5")
    trainer.write(command)
    trainer.end()
    gone()
    assert receiver.events()[-1][1]["state"] == state_told
    assert set(receiver.rows()) >= set(expected(range(5)))


def test_a_killed_trainer_has_crashed_and_lost_nothing(start, receiver, gone):
    trainer = start()
    trainer.tell("log 0 4000")
    trainer.kill()
    gone()
    assert receiver.rows() == expected(range(4000))
    assert receiver.events()[-1][1]["state"] == "crashed"


def test_a_killed_agent_is_followed_by_another_which_goes_on(start, receiver, agent, gone, wait_for):
    trainer = start(buffer_bytes=256 << 20)  # room for all that is logged until another agent is there, however slow
    steps, pid = 0, agent()

    def log_until_there_is_another():
        nonlocal steps
        trainer.tell(f"log {steps} {steps + 100}")  # more than the 4 KiB of rows between two looks
        steps += 100
        return agent() != pid

    for _ in range(3):
        os.kill(pid, signal.SIGKILL)
        wait_for(log_until_there_is_another, "a log call starts another agent")
        pid = agent()
    os.kill(pid, signal.SIGKILL)
    trainer.tell("finish")
    _, errors = trainer.end()
    gone()
    assert 1 <= errors.count("started a new one") <= 4  # one that is killed before it has begun is not seen
    assert receiver.rows() == expected(range(steps))
    assert [name for name, _ in receiver.events()] == ["tensormeter.run.start", "tensormeter.run.end"]


def test_who_looks_into_a_spool_in_use_takes_nothing_away(start, state, receiver, agent, gone, wait_for):
    """Another process that closes the database is not the last: its log is still the agent's, and outlives a killed agent."""
    receiver.stop()
    trainer = start()
    pid = agent()
    (run,) = list_runs(state)
    log = run.spool.with_name(f"{run.spool.name}-wal")
    look = [sys.executable, "-m", "tensormeter", "spool", "ls", "--dir", str(state)]
    for steps in (500, 1000):
        trainer.tell(f"log {steps - 500} {steps}")
        assert "driven" in subprocess.run(look, capture_output=True, text=True, check=True).stdout
        assert log.exists()

        def everything_is_kept(steps=steps):
            with closing(Spool(run.spool)) as spool:
                return spool.pending_items() >= 3 * steps

        wait_for(everything_is_kept, "the spool has the rows")
        assert log.exists()
    os.kill(pid, signal.SIGKILL)
    receiver.start()
    trainer.tell("finish")
    trainer.end()
    gone()
    assert receiver.rows() == expected(range(1000))


def test_a_trainer_that_finishes_while_the_server_is_down(start, receiver, agent, gone, wait_for):
    receiver.stop()
    trainer = start(finish_timeout=0.2)
    trainer.tell("log 0 500")
    pid = agent()
    trainer.tell("finish")
    assert "the agent keeps trying" in trainer.end()[1]
    assert receiver.received == []
    receiver.start()
    os.kill(pid, signal.SIGUSR1)  # now, instead of after the backoff
    gone()
    assert receiver.rows() == expected(range(500))


def test_an_agent_that_has_lingered_leaves_the_rest_to_sync(start, state, receiver, gone, wait_for):
    receiver.stop()
    trainer = start(finish_timeout=0, linger_timeout=0)
    trainer.tell("log 0 500")
    trainer.tell("finish")
    trainer.end()
    (run,) = list_runs(state)
    wait_for(lambda: not agent_lives(run), "the agent gives up")
    (failed,) = sync_runs(state)
    assert (failed.delivered, "refused" in failed.message) == (False, True)
    receiver.start()
    (result,) = sync_runs(state)
    assert result.delivered, result.message
    gone()
    assert receiver.rows() == expected(range(500))


def test_requests_that_are_lost_on_the_way_back_are_sent_again_as_the_same(
    start, receiver, answering, agent, gone, wait_for
):
    receiver.script("reset", answering(503), "drip", answering(500))
    trainer = start(export_timeout=0.2)
    trainer.tell("log 0 500")
    pid = agent()
    trainer.write("finish")

    def poked():
        os.kill(pid, signal.SIGUSR1)
        return len(receiver.received) > 4

    wait_for(poked, "the fifth attempt")
    trainer.end()
    gone()
    assert receiver.rows() == expected(range(500))
    attempts = Counter(request.id for request in receiver.received)
    assert attempts.total() == len(attempts) + 4, "each attempt that failed was made again, of whichever signal"
    assert len({(request.id, request.body) for request in receiver.received}) == len(attempts)


def test_an_agent_on_a_thread(start, receiver):
    trainer = start(agent="thread")
    trainer.tell("log 0 3000")
    trainer.tell("finish")
    assert receiver.rows() == expected(range(3000))
    assert trainer.end() == (0, "")
    assert receiver.events()[-1][1]["state"] == "finished"


@pytest.mark.parametrize("settings", [{"agent": "off"}, {"mode": "offline"}])
def test_sync_delivers_what_was_only_recorded(start, state, receiver, gone, wait_for, settings):
    trainer = start(**settings, quiet=False)
    trainer.tell("log 0 3000")
    trainer.tell("finish")
    assert "tensormeter sync" in trainer.end()[1]
    assert receiver.received == []
    (run,) = list_runs(state)
    wait_for(lambda: not agent_lives(run), "the agent, if there was one, has ended")
    seen = []
    (result,) = sync_runs(state, on_status=lambda run, items: seen.append(items))
    assert result.delivered, result.message
    gone()
    assert receiver.rows() == expected(range(3000))
    assert [name for name, _ in receiver.events()] == ["tensormeter.run.start", "tensormeter.run.end"]
    assert list(sync_runs(state)) == []


def test_sync_of_a_run_that_is_still_being_recorded(start, state, receiver, gone):
    trainer = start(agent="off")
    trainer.tell("log 0 1000")
    (result,) = sync_runs(state)
    assert result.delivered
    assert receiver.rows() == expected(range(1000))
    trainer.tell("log 1000 2000")
    trainer.tell("finish")
    trainer.end()
    (result,) = sync_runs(state)
    assert result.delivered
    gone()
    assert receiver.rows() == expected(range(2000))


def test_what_the_spool_dropped_is_told_once(start, state, receiver, gone):
    """By one of several processes: the server adds up what each of them says."""
    trainers = [start(agent="off") for _ in range(3)]
    (run,) = list_runs(state)
    with closing(Spool(run.spool)) as spool:
        spool.count_loss("refused", 7)
    for trainer in trainers:
        trainer.tell("finish")
        trainer.end()
    assert all(result.delivered for result in sync_runs(state))
    gone()
    ends = [body["dropped"] for name, body in receiver.events() if name == "tensormeter.run.end"]
    assert sorted(ends, key=len) == [{}, {}, {"refused": 7}]


def test_sync_leaves_a_run_to_its_agent_and_wakes_it(start, state, receiver, agent, gone):
    receiver.stop()
    trainer = start(finish_timeout=0)
    trainer.tell("log 0 10")
    pid = agent()
    trainer.tell("finish")
    trainer.end()
    receiver.start()
    (result,) = sync_runs(state)
    assert not result.delivered
    assert f"process {pid}" in result.message
    gone()
    assert receiver.rows() == expected(range(10))


def test_processes_of_one_run_share_an_agent(start, state, receiver, agent, gone, wait_for):
    first = start()
    pid = agent()
    second, third = start(), start()
    assert agent() == pid
    assert len(list_runs(state)) == 1
    for trainer, steps in ((first, "0 1000"), (second, "1000 2000"), (third, "2000 3000")):
        trainer.tell(f"log {steps}")
    standby = wait_for(lambda: standby_of(psutil.Process(pid)), "a standby")
    (run,) = list_runs(state)
    wait_for(lambda: processes_with(str(run.path)) == sorted([pid, standby.pid]), "only the agent and its standby")
    first.tell("finish")
    second.tell("finish")
    third.kill()
    gone()
    assert receiver.rows() == expected(range(3000))
    assert len({process for process, *_ in receiver.points()}) == 3
    states = sorted(body["state"] for name, body in receiver.events() if name == "tensormeter.run.end")
    assert states == ["crashed", "finished", "finished"]


def processes_with(argument):
    """Ids of the processes whose command line has this argument."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(pids)


def test_an_agent_that_is_told_to_stop_spools_first(start, state, receiver, agent, gone, wait_for):
    receiver.stop()
    trainer = start(schedule_delay=3600)
    trainer.tell("log 0 5000")
    (run,) = list_runs(state)
    os.kill(agent(), signal.SIGTERM)
    wait_for(lambda: not agent_lives(run), "the agent ends")
    trainer.kill()
    for path in run.ring_files():
        path.unlink()  # a reboot: shared memory is gone
    receiver.start()
    (result,) = sync_runs(state)
    assert result.delivered, result.message
    gone()
    assert receiver.rows() == expected(range(5000))


def test_a_run_that_a_receiver_rejects_is_kept_for_people(start, state, receiver, answering, wait_for):
    receiver.script(*[answering(400)] * 100)
    trainer = start()
    trainer.tell("log 0 10")
    trainer.tell("finish")
    assert "receivers refused" in trainer.end()[1]
    (run,) = list_runs(state)
    wait_for(lambda: not agent_lives(run), "the agent ends")
    assert "quarantined" in run.agent_log.read_text()
    assert run.spool.exists()


def test_what_is_refused_costs_its_neighbours_nothing_though_agents_are_killed(
    start, state, environment, receiver, wait_for
):
    """Each point arrives under one id: what a killed agent had sent of a divided request is not sent in other parts again."""

    def bad(body):
        return any(
            gauge.name == "n" and any(value % 100 == 42 for value in gauge.values.tolist())
            for batch in decode_metrics(body)
            for gauge in batch.gauges
        )

    receiver.refuses = bad
    trainer = start(mode="offline", max_export_batch_size=900)
    trainer.tell("log 0 3000")
    trainer.tell("finish")
    trainer.end()
    (run,) = list_runs(state)
    wait_for(lambda: not agent_lives(run), "the agent ends")
    sync = [sys.executable, "-m", "tensormeter", "sync", str(state)]
    for _ in range(8):
        seen = len(receiver.received)
        with subprocess.Popen(sync, env=environment, stdout=subprocess.DEVNULL) as process:
            wait_for(lambda seen=seen: len(receiver.received) > seen + 5, "parts are sent")
            process.kill()
    done = subprocess.run(sync, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "not delivered" in done.stdout, "tensormeter spool retry" in done.stdout) == (
        1,
        True,
        True,
    )
    rows = receiver.rows()
    assert sorted(step for step, _ in rows.elements()) == [*range(3000)], "of each row at least a part"
    without = sorted(step for step, values in rows if not any(name == "n" for name, _ in values))
    assert without == [*range(42, 3000, 100)]
    with closing(Spool(run.spool)) as spool:
        assert spool.pending() == 0
        assert spool.quarantined_items() == len(without)
        assert [reason[:9] for _, reason, _ in spool.rejections()] == ["n (gauge)"]


def test_the_token_reaches_the_receiver_and_nothing_else(start, state, receiver, agent, gone):
    trainer = start(token="t0p-secret")
    trainer.tell("log 0 10")
    (run,) = list_runs(state)
    command_line = Path(f"/proc/{agent()}/cmdline").read_text()
    texts = [path.read_bytes() for path in run.path.iterdir() if path.is_file()]
    texts += [path.read_bytes() for path in run.ring_files()]
    trainer.tell("finish")
    trainer.end()
    gone()
    assert {request.headers["authorization"] for request in receiver.received} == {"Bearer t0p-secret"}
    assert "t0p-secret" not in command_line
    assert not any(b"t0p-secret" in text for text in texts)


@pytest.mark.parametrize("agent", ["process", "thread"])
def test_a_script_that_ends_at_once_is_delivered(environment, receiver, agent):
    """Python 3.12 and later start no thread after the last line of a script."""
    script = "import tensormeter\ntensormeter.init('short').log({'loss': 0.5}, 3)\n"
    done = run_python("-W", "error", "-c", script, environment=environment | {"TENSORMETER_AGENT": agent}, check=True)
    assert [line for line in done.stderr.splitlines() if "log() of" not in line] == []
    assert {(step, values) for step, values in receiver.rows()} == {(3, (("loss", 0.5),))}


def test_a_forked_child_of_the_trainer_is_a_process_of_its_own(environment, receiver, gone):
    """No reference to `log` may write to the parent's ring. And the child ends."""
    script = """
import os, sys, tensormeter
run = tensormeter.init("forks")
before = run.log
run.log({"loss": 0.0, "n": 0}, 0)
kept = run.log
child = os.fork()
for step in range(100, 500) if child == 0 else range(1, 100):
    (before, kept, run.log, tensormeter.log)[step % 4]({"loss": step / 7, "n": step}, step)
if child:
    assert os.waitpid(child, 0)[1] == 0
sys.exit(0)
"""
    # Python 3.12 and later warn about any fork of a process with threads. NumPy starts some.
    quiet = {"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | quiet, stderr=subprocess.PIPE, timeout=300, check=False
    )
    # On a busy machine a log call may take long, and says so.
    lines = [line for line in done.stderr.splitlines() if b"log() of" not in line]
    assert (done.returncode, lines) == (0, [])
    gone()
    assert receiver.rows() == expected(range(500))
    assert len({process for process, *_ in receiver.points()}) == 2
