"""State directories on disks that hang, fail, or lack something: training goes on, and everything is delivered."""

import os
import re
import signal
from pathlib import Path

import pytest

from support.agents import agents_of, kill_agents
from tensormeter import Settings
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.cli import doctor_checks


@pytest.fixture
def disk(odd_disk, request):
    return odd_disk(**getattr(request, "param", {}))


@pytest.fixture
def state(disk):
    return disk.path / "state"


@pytest.fixture
def backing(disk):
    """The state directory without the manners of its disk."""
    return disk.backing / "state"


@pytest.fixture
def gone(backing, wait_for):
    """Waits until everything is delivered, and the directory of the run is removed."""
    return lambda: wait_for(lambda: not [*(backing / "runs").glob("[!.]*@*")], "the run directory is gone")


FLUSH = """
def flush(run, timeout=300):
    process = run._process
    return process.wait_for_flush(process.request_flush(), timeout)
"""

WATCHED = """
events, watched = [], threading.current_thread()
def hook(event, arguments):
    if threading.current_thread() is watched and event.startswith(WAITING):
        events.append((event, str(arguments)[:200]))
WAITING = ("open", "os.", "fcntl.", "subprocess.", "socket.", "shutil.", "mmap.")
"""


def test_fault_117_training_does_not_wait_for_a_disk_that_hangs(train, receiver, disk, oracle, gone):
    """The thread that logs opens nothing, starts nothing, and no thread is there; the trainer ends while the disk still hangs."""
    trainer = train(
        FLUSH
        + WATCHED
        + "run = tensormeter.init('faults')\nlog(run, range(1000))\nflush(run)\nassert ready() == 'hangs'\n"
        "sys.addaudithook(hook)\nlog(run, range(1000, 9000))\nwatched = None\n"
        "for event in events: assert event[0] == 'os.putenv', event\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not flush(run, 0.2)\nrun.finish(timeout=0.5)\n"
    )
    trainer.ready()
    disk.behave(hang=True)
    trainer.go("hangs")
    trainer.finish()
    assert disk.hanging
    disk.behave()
    gone()
    oracle.agrees(receiver, range(9000))


def test_fault_193_a_forked_child_begins_while_the_disk_hangs(train, receiver, disk, oracle, gone):
    """It makes its ring in shared memory, next to its parent's. It does not look at the disk, and ends before that answers."""
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(1000))\nflush(run)\nassert ready() == 'hangs'\n"
        "while time.monotonic() - run._process.ring.words[24] / 1e9 > 0.3: threading.Event().wait(0.01)  # HeaderWord.PULSE\n"
        "if (child := os.fork()) == 0:\n"
        "    events = []\n"
        "    sys.addaudithook(lambda event, arguments: events.append(event) if os.environ['TENSORMETER_DIR'] in str(arguments) else None)\n"
        "    log(run, range(1000, 2000))\n"
        "    print(events or 'ready', flush=True)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\nready()\nrun.finish(timeout=300)\n"
    )
    trainer.ready()
    disk.behave(hang=True)
    trainer.go("hangs")
    trainer.ready()  # says the child
    trainer.ready()  # says its parent
    disk.behave()
    trainer.go()
    status, errors = trainer.end()
    assert (status, errors) == (0, "")
    gone()
    oracle.agrees(receiver, range(2000))


def test_fault_118_a_disk_that_hangs_from_the_start(train, receiver, disk, oracle):
    """The run is kept in memory; what the hung disk makes of it later disturbs nothing."""
    disk.behave(hang=True)
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(2000))\nrun.finish(timeout=300)\nready()\n"
    )
    trainer.ready()
    assert disk.hanging
    oracle.agrees(receiver, range(2000))
    trainer.go()
    errors = trainer.finish()
    assert disk.hanging, "the trainer has ended before the disk answers"
    assert f"because {disk.path}/state is unusable (it did not respond" in errors
    disk.behave()


def test_fault_114_sigterm_while_the_disk_hangs(train, receiver, disk, oracle, gone):
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(1000))\nflush(run)\nready()\n"
        "log(run, range(1000, 2000))\nready()\n",
        sigterm_timeout=0.5,
    )
    trainer.ready()
    disk.behave(hang=True)
    trainer.go()
    trainer.ready()
    trainer.process.terminate()
    status, errors = trainer.end()
    assert status == -signal.SIGTERM, errors
    assert disk.hanging
    disk.behave()
    gone()
    oracle.agrees(receiver, range(2000))


def test_doctor_says_that_the_disk_hangs(disk, state, monkeypatch):
    monkeypatch.setattr(doctor_checks, "_TIMEOUT", 0.2)
    disk.behave(hang=True)
    finding = doctor_checks.spool(Settings(directory=state))
    assert (finding.state, "did not respond" in finding.summary) == ("failed", True)


ALL = "CHAOS_KILLS" in os.environ
"""Whether to try all manners of disks, as `make chaos` does."""

FAILURES = [
    *({"fail": name} for name in ("EIO", "ESTALE")),
    *({"fail_writes": name} for name in ("ENOSPC", "EROFS")),
]
if ALL:
    FAILURES += [
        *({"fail": name} for name in ("ENOSPC", "EDQUOT", "EROFS", "ENOTCONN")),
        *({"fail_writes": name} for name in ("EIO", "ESTALE", "EDQUOT")),
    ]

LACKING_DISKS = ({"maps": False}, {"maps": False, "kind": "odd"}, {"locks": False}, {})
REFUSED = ([], ["fsync"], ["rename"], ["link"], ["fallocate"])
LACKS = [
    (disk, refuse)
    for number, disk in enumerate(LACKING_DISKS)
    for refuse in REFUSED
    if ALL or disk == {} or refuse == REFUSED[number]
]
"""Disks that lack something, and operations that they refuse: each of both at least once."""


@pytest.mark.parametrize(
    "manners",
    [
        {"fail": "EIO"},
        {"fail": "ESTALE"},
        {"fail_writes": "EDQUOT"},
        {"fail_writes": "EROFS"},
        {"fail": "EIO", "rate": 0.3},
    ],
    ids=str,
)
def test_fault_115_a_disk_that_fails_from_the_start(train, receiver, disk, oracle, manners):
    disk.behave(**manners)
    trainer = train("run = tensormeter.init('faults')\nlog(run, range(2000))\nrun.finish(timeout=300)\n")
    errors = trainer.finish()
    assert disk.failed
    oracle.agrees(receiver, range(2000))
    if "rate" not in manners:
        assert errors.count("is kept in memory") == 1


@pytest.mark.parametrize("durability", ["flush", "fsync"])
def test_fault_116_a_disk_that_loses_operations_in_the_middle(
    train, receiver, disk, backing, oracle, wait_for, durability
):
    trainer = train(
        "run = tensormeter.init('faults')\nlog(run, range(1000))\nready()\nlog(run, range(1000, 2000))\nrun.finish(timeout=300)\n",
        durability=durability,
    )
    trainer.ready()
    disk.behave(refuse=["fsync", "rename", "link", "fallocate"])
    trainer.go()
    trainer.finish()
    oracle.agrees(receiver, range(2000))
    wait_for(lambda: not [*(backing / "runs").glob("*/run.json")], "the run is over")  # open files keep its folder
    oracle.agrees(receiver, range(2000))


def name_of(manners):
    return " ".join(f"{name} {value}" for name, value in manners.items())


@pytest.mark.parametrize("manners", FAILURES, ids=name_of)
def test_fault_119_a_disk_that_fails_in_the_middle(train, receiver, disk, oracle, gone, manners):
    """Delivery goes on from memory, one line says so, and the disk is used again when it works."""
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(1000))\nflush(run)\nassert ready() == 'fails'\n"
        "log(run, range(1000, 2000))\nready()\n"
        "log(run, range(2000, 3000))\nassert flush(run)\nassert ready() == 'works'\n"
        "log(run, range(3000, 4000))\nrun.finish(timeout=300)\n"
    )
    trainer.ready()
    disk.behave(**manners)
    trainer.go("fails")
    trainer.ready()
    trainer.go()
    trainer.ready()
    oracle.agrees(receiver, range(3000))
    assert disk.failed
    disk.behave()
    trainer.go("works")
    errors = trainer.finish()
    assert errors.count("is kept in memory until the disk works again") == 1, errors
    assert str(disk.path) in errors
    gone()
    oracle.agrees(receiver, range(4000))


@pytest.mark.parametrize("manners", [{"fail": "ESTALE"}, {"fail_writes": "EDQUOT"}], ids=name_of)
def test_fault_120_agents_that_are_killed_while_the_disk_fails(train, receiver, state, disk, oracle, gone, manners):
    """The next one finds what the last one kept in memory."""
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(1000))\nflush(run)\nready()\n"
        "log(run, range(1000, 2000))\nassert flush(run)\nready()\n"
        "log(run, range(2000, 3000))\nready()\nlog(run, range(3000, 4000))\nrun.finish(timeout=300)\n",
        finish_timeout=300,
    )
    trainer.ready()
    disk.behave(**manners)
    trainer.go()
    trainer.ready()
    receiver.stop()
    trainer.go()
    trainer.ready()
    kill_agents(state)
    receiver.start()
    trainer.go()
    trainer.finish()
    oracle.agrees(receiver, range(4000))
    disk.behave()
    gone()
    oracle.agrees(receiver, range(4000))


@pytest.mark.parametrize("manners", [{"fail": "EIO"}, {"fail_writes": "EDQUOT"}, {"fail_writes": "EROFS"}], ids=name_of)
def test_fault_121_a_disk_that_fails_at_the_end(train, receiver, disk, oracle, gone, manners):
    trainer = train(
        FLUSH
        + "run = tensormeter.init('faults')\nlog(run, range(1000))\nflush(run)\nlog(run, range(1000, 2000))\nready()\n"
        "run.finish(timeout=300)\n",
        schedule_delay=300,
    )
    trainer.ready()
    disk.behave(**manners)
    trainer.go()
    trainer.finish()
    oracle.agrees(receiver, range(2000))
    disk.behave()
    gone()
    oracle.agrees(receiver, range(2000))


def test_requests_that_wait_for_a_failing_disk_are_delivered_once_it_works(train, receiver, disk, oracle, gone):
    """It cannot be read meanwhile, so what comes later arrives earlier."""
    receiver.stop()
    trainer = train(
        FLUSH
        + "run = tensormeter.init('faults')\nlog(run, range(1000))\nready()\nlog(run, range(1000, 2000))\nready()\nrun.finish()\n",
        finish_timeout=0.5,
    )
    trainer.ready()
    disk.behave(fail_writes="EROFS", latency=0.001)
    trainer.go()
    trainer.ready()
    receiver.start()
    trainer.go()
    trainer.finish()
    disk.behave()
    gone()
    oracle.agrees(receiver, range(2000))


def test_fault_122_a_disk_that_fails_now_and_then(train, receiver, disk, oracle, gone):
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nready()\nlog(run, range(5000))\nrun.finish(timeout=300)\n"
    )
    trainer.ready()
    disk.behave(fail="EIO", rate=0.1)
    trainer.go()
    trainer.finish()
    disk.behave()
    gone()
    oracle.agrees(receiver, range(5000))


@pytest.mark.parametrize(("disk", "refuse"), LACKS, indirect=["disk"], ids=str)
def test_fault_123_a_disk_that_lacks_something(train, receiver, disk, oracle, gone, refuse):
    disk.behave(refuse=refuse)
    trainer = train(FLUSH + "run = tensormeter.init('faults')\nlog(run, range(2000))\nrun.finish(timeout=300)\n")
    trainer.finish()
    oracle.agrees(receiver, range(2000))
    gone()


def test_fault_124_a_ring_that_cannot_be_mapped_where_it_should_be(train, receiver, odd_disk, oracle, wait_for):
    """Neither the place for rings nor the state directory can be mapped: it is put where it can."""
    disk = odd_disk(maps=False)
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(2000))\nrun.finish(timeout=300)\n",
        dir=disk.path / "state",
        buffer_dir=disk.path / "rings",
    )
    errors = trainer.finish()
    oracle.agrees(receiver, range(2000))
    place = Path(re.search(r"the ring buffer is in ([^,;\s]+)", errors)[1])
    assert place.name.startswith("faulty@")
    wait_for(lambda: not place.exists(), "the agent has removed the ring")


@pytest.mark.parametrize(
    ("refuse", "lacks"),
    [
        ([], "shared memory maps (the spool is slower)"),
        (["fsync"], "fsync (the spool may not survive a power failure) and shared memory maps (the spool is slower)"),
    ],
    ids=["maps", "maps and fsync"],
)
def test_where_the_disk_cannot_be_mapped_the_run_is_kept_on_it(
    train, odd_disk, state, receiver, wait_for, refuse, lacks
):
    """And a line says what it lacks."""
    disk = odd_disk(maps=False)
    disk.behave(refuse=refuse)
    receiver.stop()
    trainer = train(
        FLUSH + "run = tensormeter.init('faults')\nlog(run, range(100))\nrun.finish()\n",
        dir=disk.path / "state",
        linger_timeout=0,
    )
    errors = trainer.finish()
    assert f"{disk.path}/state/runs/" in errors
    assert f"does not support {lacks}\n" in errors
    wait_for(lambda: not agents_of(disk.path / "state"), "the agent leaves")
    (run,) = list_runs(disk.path / "state")
    assert os.path.getsize(run.spool)
