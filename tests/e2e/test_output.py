"""Console output and log records of real processes: they arrive once, and the terminal or file sees no difference."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import psutil
import pytest

from support.trainers import named_settings, training_environment
from tensormeter.agent.run_directory.directory import list_runs

PROLOGUE = """
import ctypes, logging, os, signal, subprocess, sys, time
import tensormeter
run = tensormeter.init("output")
"""


@pytest.fixture
def environment(tmp_path, receiver):
    """Builds the environment of a script that captures its output."""

    def environment(**settings: object) -> dict[str, str]:
        changed = named_settings({"console": "first", **settings})
        variables = training_environment(tmp_path, receiver.url, "output") | changed
        ignored = ("PYTHONUNBUFFERED", "COLUMNS", "LINES")
        return {name: value for name, value in variables.items() if name not in ignored}

    return environment


@pytest.fixture
def train(environment):
    """Runs a script to its end, with pipes for its output."""

    def train(script: str, prologue: str = PROLOGUE, **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", prologue + script],
            env=environment(**settings),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return train


@pytest.fixture
def delivered(receiver, wait_for):
    """Waits for the end of the run, and returns its output."""

    def delivered():
        wait_for(lambda: any(name == "tensormeter.run.end" for name, _ in receiver.events()), "the run ends")
        return receiver.output()

    return delivered


def texts(output, stream: str | None = None) -> list[str]:
    return [event.body for event in output if stream is None or event.attributes.get("log.iostream") == stream]


def end_of(receiver) -> dict:
    return next(body for name, body in receiver.events() if name == "tensormeter.run.end")


def test_lines_and_records_arrive_once(train, delivered, receiver):
    script = """
log = logging.getLogger("my.module")
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
print("one", "line")
print("a problem", file=sys.stderr)
log.info("info %d at https://me:secret@host/path", 5)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed")
print("\\x1b[31mred\\x1b[0m")
print("last", end="")
raise RuntimeError("the end")
"""
    ended = train(script)
    assert ended.stdout == "one line\n\x1b[31mred\x1b[0m\nlast"
    assert ended.stderr.startswith("a problem\nINFO info 5 at https://me:secret@host/path\nERROR it failed\nTraceback")
    output = delivered()
    assert texts(output, "stdout") == ["one line", "red", "last"]
    errors = texts(output, "stderr")
    assert errors[:2] == ["a problem", "Traceback (most recent call last):"]
    assert errors[-1] == "RuntimeError: the end"
    info, failed = [event for event in output if event.scope.name == "my.module"]
    assert (info.body, info.severity_number, info.severity_text) == ("info 5 at https://***@host/path", 9, "INFO")
    assert info.attributes["code.line.number"] > 0
    assert (failed.body, failed.severity_text, failed.attributes["exception.type"]) == (
        "it failed",
        "ERROR",
        "ZeroDivisionError",
    )
    assert [event.time for event in output] == sorted(event.time for event in output)
    assert {event.severity_text for event in output if event.attributes.get("log.iostream") == "stderr"} == {"WARN"}
    assert end_of(receiver)["traceback"].endswith("RuntimeError: the end\n")
    requests = [request for request in receiver.accepted().values() if request.path == "/v1/logs"]
    assert len(requests) < len(output)


@pytest.mark.parametrize(
    ("rank", "console", "expected"),
    [(1, "first", False), (1, "all", True), (0, "off", False)],
)
def test_which_ranks_are_captured(train, delivered, rank, console, expected):
    script = f"import os; os.environ['RANK'], os.environ['WORLD_SIZE'] = '{rank}', '2'\n{PROLOGUE}\nprint('hello')"
    ended = train(script, "", console=console)
    assert ended.stdout == "hello\n"
    assert texts(delivered()) == ["hello"] * expected


def test_children_of_every_kind(train, delivered, tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing, os, sys
import torch
import tensormeter

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        print(f"item {index}")
        return index

def work(number):
    print(f"forked {number}")
    return number

if __name__ == "__main__":
    run = tensormeter.init("output")
    print("before")
    for batch in torch.utils.data.DataLoader(Data(), num_workers=2):
        run.log({"x": float(batch)})
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(work, range(4))
    if os.fork() == 0:
        print("child exits")
        sys.exit(0)
    os.wait()
    print("after")
""")
    ended = train(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", "")
    assert ended.returncode == 0, ended.stderr
    expected = ["before", *(f"item {i}" for i in range(4)), *(f"forked {i}" for i in range(4)), "child exits", "after"]
    output = delivered()
    assert sorted(texts(output, "stdout")) == sorted(expected)
    assert sum("process.pid" in event.attributes for event in output if event.scope.name == "tensormeter") == 9


def test_a_terminal_sees_no_difference(environment, delivered):
    pytest.importorskip("tqdm")
    script = f"""
{PROLOGUE}
import shutil, tqdm
print(sys.stdout.isatty(), sys.stderr.isatty(), shutil.get_terminal_size().columns)
for _ in tqdm.tqdm(range(300), desc="work", mininterval=0):
    time.sleep(0.005)
print("end")
"""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 77, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", script], env=environment(), stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(leader, 65536):
            shown += data
    os.close(leader)
    assert process.wait(300) == 0
    assert shown.startswith(b"True True 77\r\n\rwork:   0%")
    assert shown.count(b"\rwork:") > 200
    assert shown.endswith(b"end\r\n")
    output = delivered()
    assert texts(output, "stdout") == ["True True 77", "end"]
    bars = [event for event in output if event.attributes["log.iostream"] == "stderr"]
    assert 2 <= len(bars) <= 5
    assert bars[-1].body.startswith("work: 100%")
    assert {event.severity_text for event in bars} == {"INFO"}


@pytest.mark.parametrize(("kill", "children"), [(signal.SIGKILL, "files"), (signal.SIGSTOP, "all")])
def test_an_agent_that_is_killed_or_stopped_holds_up_nothing(environment, receiver, tmp_path, wait_for, kill, children):
    script = f"""
{PROLOGUE}
print("first", flush=True)
input()
for number in range(60_000):
    print("x" * 50, number)
print("last", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(finish_timeout=1, linger_timeout=60, console_children=children),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    wait_for(lambda: texts(receiver.output()) == ["first"], "the first line arrives")
    (run,) = list_runs(tmp_path / "state")
    agent = int((run.path / "agent.lock").read_text())
    os.kill(agent, kill)
    out, _ = process.communicate("\n", timeout=300)
    assert process.returncode == 0
    lines = out.splitlines()
    assert len(lines) == 60_001
    assert lines[-1] == "last"
    if kill == signal.SIGSTOP:
        os.kill(agent, signal.SIGCONT)
    wait_for(lambda: any(name == "tensormeter.run.end" for name, _ in receiver.events()), "the run ends")
    arrived = texts(receiver.output())
    assert len(set(arrived)) == len(arrived)
    dropped = end_of(receiver)["dropped"]["console_full"]
    assert dropped + len(arrived) == 60_002 or (children == "all" and 30_000 < dropped < 60_000)


def test_secrets_are_masked_and_their_lines_arrive_once(environment, delivered, tmp_path):
    """The program masks the secrets of its environment, and the agent reads the file, which contains them."""
    script = f"""
{PROLOGUE}
print("before")
print("the key is", os.environ["SERVICE_API_KEY"])
os.write(1, f"native {{os.environ['SERVICE_API_KEY']}}\\n".encode())
print("after")
"""
    log = tmp_path / "out.log"
    with log.open("wb") as file:
        variables = environment() | {"SERVICE_API_KEY": "abcdef0123456789abcdef"}
        subprocess.run([sys.executable, "-u", "-c", script], env=variables, stdout=file, check=True, timeout=300)
    assert log.read_text().count("abcdef0123456789abcdef") == 2
    lines = texts(delivered(), "stdout")
    assert sorted(lines) == ["after", "before", "native ***", "the key is ***"]


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("sys.excepthook = lambda *error: None; raise ValueError('lost')", "ValueError: lost"),
        ("sys.exit('no data, token=hf_abcdefghijklmnopqrstuvwxyz123456')", "exit status 1: no data, token=***"),
        ("exit('no data')", "exit status 1: no data"),
        ("quit(1)", "exit status 1"),
    ],
)
def test_an_end_is_a_failure_even_if_others_handle_it(train, delivered, receiver, ending, message):
    assert train(ending).returncode == 1
    delivered()
    end = end_of(receiver)
    assert (end["state"], end["message"]) == ("failed", message)


def test_a_program_without_standard_files_is_recorded(environment, delivered, receiver):
    """Its own files must not get the descriptors 1 and 2, to which native code and children write."""
    script = """
import os, subprocess, tensormeter
run = tensormeter.init()
for step in range(100):
    run.log({"loss": float(step)})
    os.write(1, b"to nowhere " * 100)
    os.write(2, b"to nowhere " * 100)
subprocess.run("echo from a child; echo again >&2", shell=True)
run.finish()
"""
    command = [*("bash", "-c", '"$0" -c "$1" <&- >&- 2>&-'), sys.executable, script]
    subprocess.run(command, env=environment(), check=True, timeout=300)
    delivered()
    losses = sorted(value for (_, name, _, value), _ in receiver.points().items() if name == "loss")
    assert losses == [float(step) for step in range(100)]
    assert end_of(receiver)["state"] == "finished"


NATIVE = """
print("from Python")
print("problem", file=sys.stderr)
logging.warning("logged")
os.write(1, b"from os.write\\n")
library = ctypes.CDLL(None)
library.printf(b"from printf\\n")
library.fflush(None)
subprocess.run("echo from a child; echo its problem >&2", shell=True)
for number in range(2000):
    print("line", number)
    if number % 500 == 0:
        print("note", number, file=sys.stderr)
"""


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["files", "pipes"])
def test_children_and_native_code(environment, delivered, tmp_path, kind, together):
    command = [sys.executable, "-c", "print('before', flush=True)\n" + PROLOGUE + NATIVE]
    options = {"env": environment(), "timeout": 300}
    if kind == "pipes":
        stderr = subprocess.STDOUT if together else subprocess.PIPE
        shown = (
            subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=True, **options)
            .stdout.decode()
            .splitlines()
        )
    else:
        names = ["out", "out"] if together else ["out", "err"]
        for name in names:
            (tmp_path / name).write_bytes(b"of an earlier program\n")
        with (tmp_path / names[0]).open("ab") as out, (tmp_path / names[1]).open("ab") as err:
            subprocess.run(command, stdout=out, stderr=err, check=True, **options)
        first, *shown = (tmp_path / "out").read_text().splitlines()
        assert first == "of an earlier program"
    assert shown[0] == "before"
    assert {"from os.write", "from printf", "from a child", "line 1999"} < set(shown)
    output = delivered()
    by_python = ["from Python", *(f"line {number}" for number in range(2000))]
    out = [*by_python, "from os.write", "from printf", "from a child"] + ["its problem"] * together
    err = ["problem", *(f"note {number}" for number in range(0, 2000, 500))] + ["its problem"] * (not together)
    assert sorted(texts(output, "stdout")) == sorted(out)
    assert sorted(texts(output, "stderr")) == sorted(err)
    assert [event.body for event in output if event.scope.name == "root"] == ["logged"]


def test_killed_agents_and_a_child_that_outlives_the_script(environment, receiver, delivered, tmp_path, wait_for):
    """Files: the agent is killed while Python and a child print, and a child goes on when the script has ended."""
    script = f"""
{PROLOGUE}
child = subprocess.Popen("for i in $(seq 300); do echo child $i; sleep 0.005; done", shell=True)
for number in range(1500):
    sys.stdout.write("line %d\\n" % number)
    time.sleep(0.001)
child.wait()
subprocess.Popen("read line; echo after the end", shell=True, stdin=sys.stdin)
"""
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-c", script]
        process = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=out, stderr=out)
    killed = set()
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            (run,) = list_runs(tmp_path / "state")
            agent = int((run.path / "agent.lock").read_text())
            if agent not in killed and len(killed) < 3 and receiver.output():
                os.kill(agent, signal.SIGKILL)
                killed.add(agent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    assert killed
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    wait_for(lambda: "after the end" in (tmp_path / "out").read_text(), "the child prints")
    arrived = [text for text in texts(delivered(), "stdout") if text != "after the end"]
    lines = [f"line {number}" for number in range(1500)] + [f"child {number}" for number in range(1, 301)]
    assert sorted(arrived) == sorted(lines)


def children_of(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:  # the process has ended
        return []


def find_relay(folder: Path) -> dict[int, bool]:
    """The processes of a test's relay, and whether they supervise another one. The supervisor is the first one."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error, OSError):
            is_relay = any(part.endswith("logs/relay.py") for part in process.info["cmdline"] or ())
            if is_relay and str(folder) in str(process.environ()):
                found[process.pid] = bool(children_of(process.pid))
    return dict(sorted(found.items(), key=lambda item: not item[1]))


@pytest.fixture
def shell(environment, tmp_path):
    """A program whose output leads to a pipe. It prints for each line that it reads, itself, from native code and a child."""
    script = f"""
{PROLOGUE}
print("ready", flush=True)
for line in sys.stdin:
    for number in range(5000):
        sys.stdout.write("%s %d\\n" % (line.strip(), number))
    sys.stdout.flush()
    subprocess.run("for i in $(seq 3000); do echo child $i of the shell; done", shell=True)
    os.write(1, b"native\\nready\\n")
"""
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield process
        process.kill()


def printed(turns: str) -> list[str]:
    """The lines that this program prints."""
    lines = ["ready"]
    for turn in turns:
        lines += [f"{turn} {number}" for number in range(5000)]
        lines += [*(f"child {number} of the shell" for number in range(1, 3001)), "native", "ready"]
    return lines


@pytest.mark.parametrize("victims", ["worker", "supervisor", "both"])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSTOP])
def test_a_relay_that_is_killed_or_stopped_holds_up_nothing(shell, delivered, tmp_path, wait_for, kill, victims):
    turns = "abc"
    shown = [shell.stdout.readline()]
    for turn in turns:
        wait_for(lambda: find_relay(tmp_path), "there is a relay")
        relay = find_relay(tmp_path)
        shell.stdin.write(f"{turn}\n")
        shell.stdin.flush()
        for process, supervises in relay.items():
            if victims == "both" or (victims == "supervisor") == supervises:
                os.kill(process, kill)
        shown.append(shell.stdout.readline())
        while shown[-1] != "ready\n":
            shown.append(shell.stdout.readline())
        if kill == signal.SIGSTOP:
            for process in relay:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)
    shell.stdin.close()
    assert shell.stdout.read() == ""
    assert shell.wait(60) == 0
    assert "".join(shown).splitlines() == printed(turns)
    assert set(texts(delivered(), "stdout")) <= set(printed(turns))
    wait_for(lambda: not find_relay(tmp_path), "the relay ends")


def test_a_relay_that_is_killed_too_often_is_replaced_by_a_thread(shell, delivered, tmp_path, wait_for):
    turns = "a" * 13
    shown = [shell.stdout.readline()]
    for turn in turns:
        for process in find_relay(tmp_path):
            os.kill(process, signal.SIGKILL)
        shell.stdin.write(f"{turn}\n")
        shell.stdin.flush()
        shown.append(shell.stdout.readline())
        while shown[-1] != "ready\n":
            shown.append(shell.stdout.readline())
    assert not find_relay(tmp_path)
    shell.stdin.close()
    assert shell.stdout.read() == ""
    assert shell.wait(60) == 0
    assert "".join(shown).splitlines() == printed(turns)
    assert "were killed repeatedly" in (tmp_path / "errors").read_text()
    assert set(texts(delivered(), "stdout")) <= set(printed(turns))


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_child_that_outlives_the_script_keeps_its_pipe(train, delivered, end):
    script = f"""
command = "cat > /dev/null; echo after the end; sleep 0.2; echo more"
child = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE)
print("last words", flush=True)
{end}
"""
    assert train(script).stdout == "last words\nafter the end\nmore\n"
    assert "last words" in texts(delivered())


def leave_after(line: str, script: str, variables: dict[str, str]) -> tuple[int, str]:
    """Close the output of a script after its first line. Return the exit status and the standard error."""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == line
        process.stdout.close()
        errors = process.stderr.read()
    return process.returncode, errors


def test_a_reader_that_leaves_ends_the_program_as_before(environment, receiver, wait_for):
    script = PROLOGUE + "print('first', flush=True)\nwhile True: print('more')"
    for console in ("first", "off"):
        status, errors = leave_after("first\n", script, environment(console=console, run_id=f"run-{console}"))
        assert "BrokenPipeError" in errors
        assert status in (1, 120)  # the latter if the interpreter has text left to print
    ends = [("tensormeter.run.end", "failed")] * 2
    wait_for(lambda: [(name, body["state"]) for name, body in receiver.events() if "state" in body] == ends, "both end")


def test_a_reader_that_leaves_ends_children_as_before(environment, delivered):
    """A child of another language receives SIGPIPE, also if a forked child has inherited the program's descriptors."""
    script = f"""
{PROLOGUE}
forked = os.fork()
if forked == 0:
    signal.pause()
child = subprocess.Popen(["yes"])
status = child.wait()
os.kill(forked, signal.SIGKILL)
print(status, file=sys.stderr)
"""
    _, errors = leave_after("y\n", script, environment())
    assert f"{-signal.SIGPIPE}\n" in errors
    assert str(-signal.SIGPIPE) in texts(delivered(), "stderr")


def test_a_child_of_the_first_process_of_a_container_has_no_relay(train, delivered):
    """The container, and a relay in it, would end together with the process."""
    prologue = f"import os\nreal, os.getppid = os.getppid, lambda: 1\n{PROLOGUE}os.getppid = real\n"
    script = "print('from Python')\nsubprocess.run(['echo', 'from a child'])"
    assert sorted(train(script, prologue).stdout.splitlines()) == ["from Python", "from a child"]
    assert texts(delivered(), "stdout") == ["from Python"]


def test_a_program_may_close_all_descriptors(train, delivered):
    """As daemons do. Other files then have the numbers of those that the capture had kept."""
    script = """
import fcntl, threading
os.closerange(64, 4096)
files = [fcntl.fcntl(0, fcntl.F_DUPFD, 64) for _ in range(20)]
for thread in threading.enumerate():
    if thread.name == "tensormeter-relay":
        thread.join(20)
        assert not thread.is_alive()
print("from Python", flush=True)
subprocess.run(["echo", "from a child"])
run.finish()
for file in files:
    os.fstat(file)
print("after the end", flush=True)
"""
    ended = train(script)
    assert ended.stdout == "from Python\nfrom a child\nafter the end\n"
    assert "Traceback" not in ended.stderr
    assert sorted(texts(delivered(), "stdout")) == ["from Python", "from a child"]


def test_offline_runs_keep_their_output(train, receiver, tmp_path, environment):
    assert train("print('kept')", mode="offline").stdout == "kept\n"
    assert receiver.output() == []
    command = [sys.executable, "-m", "tensormeter", "sync"]
    subprocess.run(command, env=environment(), check=True, timeout=300, capture_output=True)
    assert texts(receiver.output()) == ["kept"]


def test_a_killed_script_loses_no_line(train, delivered):
    ended = train("print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.stdout == "last words\n"
    assert texts(delivered()) == ["last words"]


def test_output_has_a_limit(train, delivered, receiver):
    train("for number in range(100): print('line', number)", console_max_bytes=1000)
    arrived = texts(delivered())
    assert 20 < len(arrived) < 60
    assert "further output is not recorded" in arrived[-1]
    assert end_of(receiver)["dropped"] == {"console_limit": 100 - len(arrived) + 1}


def test_closed_streams(train, delivered):
    script = "sys.stdout.close(); os.close(2)\nlogging.getLogger('a').error('recorded')\nrun.log({'x': 1.0})"
    assert train(script).returncode == train(script, console="off").returncode
    assert texts(delivered()) == ["recorded"]


def test_destinations_without_log_records_ignore_output(train, tmp_path):
    options = f"tensorboard.directory={tmp_path / 'tb'}"
    ended = train("print('hello'); run.log({'x': 1.0})", exporters="console,tensorboard", exporter_options=options)
    assert ended.returncode == 0
    assert ended.stdout == "hello\n"
    (file,) = (tmp_path / "tb").rglob("*tfevents*")
    assert b"hello" not in file.read_bytes()
