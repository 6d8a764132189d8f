"""Processes that are killed, forked, told to end, or end in their own way: faults 17, 18, 26, 28, 31 to 35."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

import tensormeter
from tensormeter.agent.run_directory.directory import list_runs
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import HeaderWord, State
from tensormeter.session import exit_hooks

ENDLESS = """
run = tensormeter.init("faults")
step = 0
while True:
    log(run, range(step, step + 10))
    step += 10
"""


def end_event(receiver):
    (body,) = [body for name, body in receiver.events() if name == "tensormeter.run.end"]
    return body


def test_fault_17_sigkill_of_the_trainer(train, receiver, gone, oracle, kills, instants, wait_for):
    for kill in range(kills):
        receiver.received.clear()
        trainer = train(ENDLESS, run_id=f"killed-{kill}", buffer_bytes=64 << 20)
        rows = instants.randrange(1, 5000)
        wait_for(lambda trainer=trainer, rows=rows: trainer.returned >= rows, "rows are logged")
        trainer.kill()
        gone()
        oracle.agrees_after_kill(receiver, trainer.returned)
        assert end_event(receiver)["state"] == "crashed"
        assert end_event(receiver)["dropped"] == {}


def test_fault_18_sigkill_of_the_agent(receiver, run_settings, oracle, kills, instants, wait_for, gone):
    """Killed at random instants of its life, from its start on."""
    settings = run_settings(agent="process", schedule_delay=0.01, max_export_batch_size=300)
    run = tensormeter.init("faults", settings=settings)
    (directory,) = list_runs(settings.directory)
    step, pid = 0, None
    for _ in range(kills):
        wait_for(lambda pid=pid: directory.agent_pid() not in (None, pid), "an agent")
        pid = directory.agent_pid()
        for _ in range(instants.randrange(1, 50)):
            for _ in range(instants.randrange(1, 30)):
                run.log({"loss": step / 7, "n": step}, step)
                step += 1
            threading.Event().wait(instants.random() / 500)
        os.kill(pid, signal.SIGKILL)
    run.finish()
    gone()
    oracle.agrees(receiver, range(step))
    assert [name for name, _ in receiver.events()] == ["tensormeter.run.start", "tensormeter.run.end"]


def test_fault_26_two_trainers_with_one_run_id(train, receiver, gone):
    script = "run = tensormeter.init('faults')\nready()\nlog(run, range({0}, {0} + 1000))\nrun.finish()\n"
    trainers = [train(script.format(start)) for start in (0, 500)]
    for trainer in trainers:
        trainer.ready()
    for trainer in trainers:
        trainer.go()
    for trainer in trainers:
        trainer.finish()
    gone()
    rows = receiver.rows()
    assert rows.total() == 2000
    assert len({process for process, *_ in receiver.points()}) == 2
    assert sorted(rows.values()) == [1] * 1000 + [2] * 500


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static volatile long long *offset;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    real = dlsym(RTLD_NEXT, "clock_gettime");
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    if (file >= 0) offset = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
}
/* The kernel's clock has not jumped: waits until a time of ours must be told in its time. */
int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
    static int (*wait)(sem_t *, const struct timespec *);
    if (!wait) wait = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec at = *until;
    if (offset) at.tv_sec -= *offset;
    return wait(semaphore, &at);
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, at);
    if (clock == CLOCK_REALTIME && offset) at->tv_sec += *offset;
    return result;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="compiles a clock that jumps")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler to set a process's clock")
def test_fault_28_the_clock_jumps(train, receiver, gone, oracle, tmp_path, prelude):
    """By an hour and by ten years, forwards and back, for the trainer and its agent."""
    source, library, offset = tmp_path / "clock.c", tmp_path / "clock.so", tmp_path / "offset"
    source.write_text(CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(bytes(8))
    script = f"""
import struct
run = tensormeter.init("faults")
before = time.time()
for number, seconds in enumerate((0, 3600, 0, -3600, 315_360_000, 0, -315_360_000, 0)):
    with open({str(offset)!r}, "r+b") as file:
        file.write(struct.pack("<q", seconds))
    assert abs(time.time() - before - seconds) < 300
    log(run, range(number * 500, number * 500 + 500))
run.finish()
"""
    launch = f"import os, sys\nos.environ |= {{'LD_PRELOAD': {str(library)!r}, 'CLOCK_OFFSET': {str(offset)!r}}}\n"
    launch += f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', PRELUDE + {script!r}])\n"
    (tmp_path / "prelude").write_text(prelude)
    trainer = train(f"PRELUDE = open({str(tmp_path / 'prelude')!r}).read()\n" + launch)
    trainer.finish()
    gone()
    oracle.agrees(receiver, range(4000))
    times = {step: at for (_, name, at, step), _ in receiver.points().items() if name == "tensormeter.step"}
    in_order = [times[step] for step in range(4000)]
    assert all(earlier < later for earlier, later in itertools.pairwise(in_order))


def test_fault_31_daemon_threads_log_at_exit(train, receiver, gone):
    script = """
run = tensormeter.init("faults")
log(run, range(100))
def forever():
    step = 0
    while True:
        run.log({"other": step}, step)
        step += 1
        if step % 100 == 0:
            time.sleep(0.001)
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
while not run._process.ring.words[18] and time.monotonic() % 1 > 0.05:
    pass
"""
    status, errors = train(script).end()
    gone()
    assert status == 0, errors
    assert "Traceback" not in errors
    assert {step for _, name, _, step in receiver.points() if name == "n"} == set(range(100))
    assert end_event(receiver)["state"] == "finished"


def test_fault_32_os_exit(train, receiver, gone, oracle):
    status, _ = train("run = tensormeter.init('faults')\nlog(run, range(3000))\nos._exit(7)\n").end()
    assert status == 7
    gone()
    oracle.agrees(receiver, range(3000))
    assert end_event(receiver)["state"] == "crashed"


@pytest.mark.parametrize("times", [1, 2])
def test_fault_33_ctrl_c(train, receiver, state, gone, oracle, wait_for, times):
    """Once: the run fails and is delivered. Twice: the second leaves at once; the agent delivers."""
    if times == 2:
        receiver.stop()
    trainer = train("run = tensormeter.init('faults')\nlog(run, range(3000))\nready()\n", finish_timeout=3000)
    trainer.ready()
    trainer.process.send_signal(signal.SIGINT)
    if times == 2:
        (run,) = list_runs(state)
        (ring,) = run.ring_files()
        opened = RingFile.open(ring)
        wait_for(lambda: opened.state is State.FAILED, "finish waits")

        def leaves():
            trainer.process.send_signal(signal.SIGINT)
            return trainer.process.poll() is not None

        wait_for(leaves, "the second Ctrl-C leaves")
        receiver.start()
        wait_for(run.agent_pid, "an agent that handles signals")
        os.kill(run.agent_pid(), signal.SIGUSR1)
    status, errors = trainer.end()
    assert status != 0
    assert "KeyboardInterrupt" in errors
    gone()
    oracle.agrees(receiver, range(3000))
    assert (end_event(receiver)["state"], end_event(receiver)["message"]) == ("failed", "KeyboardInterrupt")


def test_fault_34_sigterm_by_default(train, receiver, gone, oracle):
    trainer = train("run = tensormeter.init('faults')\nlog(run, range(3000))\nready()\n")
    trainer.ready()
    trainer.process.send_signal(signal.SIGTERM)
    status, errors = trainer.end()
    assert status == -signal.SIGTERM, errors
    oracle.agrees(receiver, range(3000))  # at once: it waited for delivery before it ended
    gone()
    assert (end_event(receiver)["state"], end_event(receiver)["message"]) == ("preempted", "SIGTERM")


def test_fault_34_sigterm_with_the_scripts_own_handler(train, receiver, gone, oracle):
    """It runs as before, may go on logging for its grace, and exits as it likes."""
    script = """
received_signals = []
signal.signal(signal.SIGTERM, lambda number, frame: received_signals.append(number))
run = tensormeter.init("faults")
log(run, range(1000))
ready()
while not received_signals:
    signal.pause()
log(run, range(1000, 2000))
sys.exit(5)
"""
    trainer = train(script)
    trainer.ready()
    while trainer.process.poll() is None:
        trainer.process.send_signal(signal.SIGTERM)
        try:
            trainer.go()
            break
        except OSError:
            continue
    status, errors = trainer.end()
    assert status == 5, errors
    gone()
    oracle.agrees(receiver, range(2000))
    assert end_event(receiver)["state"] == "preempted"


def test_fault_34_sigterm_to_a_rank_that_is_failing(train, receiver, gone, oracle):
    """A launcher stops the other ranks when one has failed; they fail at that moment, too, and that is how they ended."""
    script = """
with tensormeter.init("faults") as run:
    log(run, range(1000))
    run.unwatch = lambda: os.kill(os.getpid(), signal.SIGTERM)  # while the run is being finished
    1 / 0
"""
    status, errors = train(script).end()
    assert status == -signal.SIGTERM, errors
    gone()
    oracle.agrees(receiver, range(1000))
    assert (end_event(receiver)["state"], end_event(receiver)["message"]) == (
        "failed",
        "ZeroDivisionError: division by zero",
    )


def test_fault_34_sigterm_then_sigkill(train, receiver, gone, oracle):
    """The grace was over before the script was."""
    script = """
signal.signal(signal.SIGTERM, lambda number, frame: print("ready", flush=True))
run = tensormeter.init("faults")
log(run, range(1000))
ready()
while True:
    signal.pause()
"""
    trainer = train(script)
    trainer.ready()
    trainer.process.send_signal(signal.SIGTERM)
    trainer.ready()  # the handler has run
    trainer.kill()
    gone()
    oracle.agrees(receiver, range(1000))
    assert end_event(receiver)["state"] == "preempted"


HANG = """
lib = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
lib.pthread_mutex_init(mutex, None)
lib.pthread_mutex_lock(mutex)
print("ready", flush=True)
lib.pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(exit_hooks._sigterm is None, reason="the handler in C could not be compiled")
def test_fault_34_sigterm_while_native_code_hangs(train, receiver, gone, oracle):
    """Python cannot run a handler; the process dies of the signal all the same, after `sigterm_timeout`."""
    start = "import ctypes\nrun = tensormeter.init('faults')\nlog(run, range(1000))\n"
    trainer = train(start + HANG, sigterm_timeout=0.3)
    trainer.ready()
    trainer.process.send_signal(signal.SIGTERM)
    status, errors = trainer.end()
    assert status == -signal.SIGTERM, errors
    gone()
    oracle.agrees(receiver, range(1000))
    assert end_event(receiver)["state"] == "preempted"


@pytest.mark.skipif(exit_hooks._sigterm is None, reason="the handler in C could not be compiled")
def test_fault_34_sigterm_while_native_code_hangs_below_the_scripts_own_handler(
    train, receiver, state, gone, oracle, wait_for
):
    """It is waited for, as without us; and killed, the run was preempted."""
    start = """
import ctypes
signal.signal(signal.SIGTERM, lambda number, frame: None)
run = tensormeter.init("faults")
log(run, range(1000))
"""
    trainer = train(start + HANG, sigterm_timeout=0.1)
    trainer.ready()
    trainer.process.send_signal(signal.SIGTERM)
    (run,) = list_runs(state)
    (path,) = run.ring_files()
    ring = RingFile.open(path)
    wait_for(lambda: ring.words[HeaderWord.SIGTERM], "the time of the signal is stored")
    trainer.kill()
    assert trainer.process.returncode == -signal.SIGKILL
    gone()
    oracle.agrees(receiver, range(1000))
    assert end_event(receiver)["state"] == "preempted"


def test_fault_34_a_forked_worker_ends_by_sigterm_as_ever(train, receiver, gone, oracle):
    script = """
run = tensormeter.init("faults")
log(run, range(10))
child = os.fork()
if child == 0:
    while True:
        signal.pause()
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
log(run, range(10, 20))
run.finish()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
    status, errors = train(script).end()
    errors = [line for line in errors.splitlines() if "log() of" not in line]  # they take long on a busy machine
    assert (status, errors) == (0, [])
    gone()
    oracle.agrees(receiver, range(20))
    assert end_event(receiver)["state"] == "finished"


@pytest.mark.parametrize(
    ("script", "end", "message", "status"),
    [
        ("with run: raise ValueError('cause', key)", "failed", "ValueError: ('cause', '***')", 1),
        ("with run: sys.exit(3)", "failed", "exit status 3", 3),
        ("with run: sys.exit()", "finished", "", 0),
        ("raise KeyError('cause')", "failed", "KeyError: 'cause'", 1),
        ("sys.exit(4)", "failed", "exit status 4", 4),
        ("try: raise OSError('cause')\nexcept OSError: run.finish('failed'); raise", "failed", "OSError: cause", 1),
        ("raise KeyboardInterrupt('cause')", "failed", "KeyboardInterrupt", -signal.SIGINT),
        ("pass", "finished", "", 0),
    ],
)
def test_fault_35_an_exception_is_a_failure_and_is_raised_again(train, receiver, gone, script, end, message, status):
    exit_status, errors = train(
        f"key = os.environ['PROXY_TOKEN'] = 'not-for-others-7'\n"
        f"run = tensormeter.init('faults')\nlog(run, range(5))\n{script}\n"
    ).end()
    assert exit_status == status
    assert ("cause" in errors) == ("cause" in script)
    gone()
    event = end_event(receiver)
    assert (event["state"], event["message"]) == (end, message)
    assert "not-for-others" not in str(event)
    assert event.get("traceback", "").endswith(f"{message}\n") == ("cause" in message)
