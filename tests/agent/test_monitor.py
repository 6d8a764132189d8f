"""An agent that has ended is replaced at once, unless agents end right after they start."""

from types import SimpleNamespace

import pytest

from tensormeter.agent import agent as agent_module
from tensormeter.agent import monitor as monitor_module
from tensormeter.agent.monitor import AgentMonitor
from tensormeter.agent.pulse import Pulse
from tensormeter.agent.run_directory.directory import RunDirectory, runs_locked
from tensormeter.errors import SettingsError
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord
from tensormeter.settings import Settings


class Machine:
    """A clock, and a run whose agents are started and killed. Rows are logged four times a second."""

    def __init__(self, tmp_path, wait_for):
        self.now = 1000.0
        self.ring = RingFile.create(tmp_path / "a.ring", {}, buffer_bytes=1 << 16, lanes=1)
        self.monotonic = lambda: self.now
        self.started = []
        self.wait_for = wait_for
        self.monitor = None

    def replace_agent(self, directory, settings):
        self.started.append(self.now)
        return True

    def check(self):
        self.now += 0.25
        self.monitor.check()
        self.wait_for(lambda: not self.monitor._busy, "the monitor has looked")

    def pulse_for(self, seconds, *, after):
        """An agent starts, takes `after` seconds for that, pulses for so long, and is killed."""
        end = self.now + after
        while self.now < end:
            self.check()
        end = self.now + seconds
        while self.now < end:
            self.ring.words[HeaderWord.PULSE] = int(self.now * 1e9)
            self.check()

    def seconds_to_the_next(self):
        killed, number = self.now, len(self.started)
        while len(self.started) == number:
            self.check()
        return self.now - killed


@pytest.fixture
def machine(tmp_path, monkeypatch, wait_for):
    machine = Machine(tmp_path, wait_for)
    monkeypatch.setattr(monitor_module, "time", SimpleNamespace(monotonic=machine.monotonic))
    monkeypatch.setattr(monitor_module, "replace_agent", machine.replace_agent)
    machine.monitor = AgentMonitor("r", None, Settings(directory=tmp_path), machine.ring)
    yield machine
    machine.ring.release()


def test_an_agent_that_had_worked_is_replaced_at_once_however_often(machine):
    for _ in range(8):
        machine.pulse_for(1.5, after=1)
        assert machine.seconds_to_the_next() <= 3


def test_an_agent_that_dies_right_after_its_start_is_replaced_later_and_later(machine):
    """However long its start takes."""
    waits = []
    for _ in range(6):
        machine.pulse_for(0.5, after=3)
        waits.append(machine.seconds_to_the_next())
    assert waits == sorted(waits)
    assert waits[-1] > 8


def test_an_agent_that_worked_again_is_replaced_at_once_again(machine):
    for _ in range(4):
        machine.pulse_for(0.5, after=1)
        machine.seconds_to_the_next()
    machine.pulse_for(60, after=1)
    assert machine.seconds_to_the_next() <= 3
    machine.pulse_for(2, after=1)
    assert machine.seconds_to_the_next() <= 3


def test_a_run_that_never_had_an_agent_is_not_told_that_it_stopped(machine, caplog):
    machine.seconds_to_the_next()
    machine.ring.words[HeaderWord.AGENT_PID] = 1 << 30
    machine.pulse_for(1.5, after=1)
    machine.seconds_to_the_next()
    assert caplog.messages == [
        "no agent was running for run r; started a new one, which delivers its data",
        "the agent of run r had stopped; started a new one, which continues its work",
    ]


def test_an_agent_pulses_while_it_loads_exporters(tmp_path, monkeypatch, wait_for):
    """Some take longer than an agent is given to its first pulse; until then it would seem to have ended."""
    settings = Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "rings", run_id="r", linger_timeout=0)
    with runs_locked(settings.directory):
        directory = RunDirectory.create(settings, "r", "r")
        directory.make_ring_directory()
        ring = RingFile.create(directory.rings / "a.ring", {}, buffer_bytes=1 << 16, lanes=1)
    pulses = []

    def load(destination):
        wait_for(lambda: ring.words[HeaderWord.PULSE], "a pulse")
        pulses.append(ring.words[HeaderWord.PULSE])
        raise SettingsError("there is none")

    monkeypatch.setattr(agent_module, "load_exporter", load)
    agent = agent_module.Agent(directory, settings, directory.try_agent_lock())
    agent.stop()
    agent.run()
    ring.release()
    assert pulses


def test_an_agent_pulses_in_a_ring_next_to_rings_that_are_gone(tmp_path, wait_for):
    """Another ring may be deleted between the look into the folder and the one into the ring."""
    settings = Settings(directory=tmp_path / "state", buffer_directory=tmp_path / "rings", run_id="r")
    with runs_locked(settings.directory):
        directory = RunDirectory.create(settings, "r", "r")
        directory.make_ring_directory()
        for name in range(20):
            (directory.rings / f"{name}.ring").symlink_to(tmp_path / "gone")
        ring = RingFile.create(directory.rings / "a.ring", {}, buffer_bytes=1 << 16, lanes=1)
    pulse = Pulse(directory)
    pulse.start()
    try:
        wait_for(lambda: ring.words[HeaderWord.PULSE], "a pulse", 10)
    finally:
        pulse.stop()
        ring.release()
