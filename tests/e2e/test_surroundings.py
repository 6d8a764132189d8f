"""No machine, scheduler or launcher keeps a run from being recorded: `init` does not raise, the script ends as it should, and
its rows arrive.

Each surrounding is a real process with a real agent and a real server. Those that only root can make are skipped for other users.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.processes import ROOT, clean_environment
from support.servers import RestartableServer
from support.waiting import wait_for

STEPS = 5
TRAIN = """
import os, tensormeter
run = tensormeter.init("surroundings", id=os.environ["RUN"])
for step in range(5):
    run.log({"loss": step / 2}, step)
run.finish()
"""
PATHS = os.pathsep.join(
    [str(ROOT / "src"), str(ROOT / "exporters"), *(path for path in sys.path if "site-packages" in path)]
)
SITE = f"import sys; sys.path[1:1] = {PATHS.split(os.pathsep)!r}"

as_root = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv, to be other users"
)


@dataclass(frozen=True)
class Surrounding:
    """The oddity of a process.

    Attributes:
        name: In a word or two.
        variables: Variables of its environment; None removes one. `{home}` and `{folder}` stand for folders of the test.
        before: Python that runs first.
        code: The script.
        options: Options of Python.
        shell: Commands of a shell before it executes Python.
        wrapper: Command that runs the shell.
    """

    name: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    before: str = ""
    code: str = TRAIN
    options: tuple[str, ...] = ()
    shell: str = ""
    wrapper: tuple[str, ...] = ()


HOMES = [
    Surrounding("no HOME", {"HOME": None}),
    Surrounding("empty HOME", {"HOME": ""}),
    Surrounding("relative HOME", {"HOME": "home"}),
    Surrounding("HOME that is missing", {"HOME": "{folder}/missing"}),
    Surrounding("HOME that is a file", {"HOME": "{folder}/file"}),
    Surrounding("HOME that is no path", {"HOME": "~no-such-user"}),
    Surrounding("empty XDG_STATE_HOME", {"XDG_STATE_HOME": ""}),
    Surrounding("relative XDG_STATE_HOME", {"XDG_STATE_HOME": "state"}),
    Surrounding("XDG_STATE_HOME that is a file", {"XDG_STATE_HOME": "{folder}/file"}),
    Surrounding("XDG_STATE_HOME of another user", {"XDG_STATE_HOME": "~no-such-user/state"}),
    Surrounding("no user names", {"USER": None, "LOGNAME": None, "HOME": None}),
    Surrounding("empty TMPDIR", {"TMPDIR": ""}),
    Surrounding("TMPDIR that is missing", {"TMPDIR": "{folder}/missing"}),
    Surrounding("TMPDIR that is a file", {"TMPDIR": "{folder}/file"}),
    Surrounding(
        "empty variables of ours",
        {
            f"TENSORMETER_{name}": ""
            for name in ("DIR", "PROJECT", "NAME", "AGENT", "BUFFER_BYTES", "ATTEMPT", "TAGS", "TOKEN")
        },
    ),
    Surrounding("no working directory", before="import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"),
    Surrounding(
        "no working directory, relative state",
        {"XDG_STATE_HOME": "state", "HOME": None},
        before="import os; os.mkdir('gone2'); os.chdir('gone2'); os.rmdir('../gone2')",
    ),
]
SYSTEM = [
    Surrounding("locale C", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    Surrounding("unknown locale", {"LC_ALL": "xx_YY.none", "LANG": "bogus", "TZ": "Nowhere/None"}),
    Surrounding("no PATH", {"PATH": None}),
    Surrounding("empty PATH", {"PATH": ""}),
    Surrounding("no standard streams", shell="exec 0<&- 1>&- 2>&-"),
    Surrounding("no standard input", shell="exec 0<&-"),
    Surrounding("no standard error", shell="exec 2>&-"),
    Surrounding("streams that are None", before="import sys; sys.stdin = sys.stdout = sys.stderr = None"),
    Surrounding("full standard error", shell="exec 2>/dev/full"),
    Surrounding("few open files", shell="ulimit -S -n 16"),
    Surrounding("short files", shell="ulimit -f 20000"),
    Surrounding("little address space", shell="ulimit -v 1500000"),
    Surrounding("no locked memory", shell="ulimit -l 0"),
    Surrounding("small stack", shell="ulimit -s 512"),
    Surrounding("umask 777", shell="umask 777"),
    Surrounding("umask 0", shell="umask 0"),
    Surrounding("SIGCHLD ignored", before="import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"),
    Surrounding("signals ignored", shell="trap '' HUP INT TERM PIPE USR1 CHLD"),
    Surrounding(
        "signals blocked", before="import signal; signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))"
    ),
    Surrounding(
        "proxies that are missing", {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "bogus", "ALL_PROXY": "::"}
    ),
    Surrounding(
        "certificates that are missing",
        {"SSL_CERT_FILE": "/missing", "SSL_CERT_DIR": "", "SSLKEYLOGFILE": "/missing/x"},
    ),
    Surrounding("numbers that are none", {"RANK": "", "WORLD_SIZE": "many", "LOCAL_RANK": "-1", "SLURM_PROCID": "0x1"}),
    Surrounding(
        "bytes that are no text",
        before=(
            "import os, sys\n"
            "for name in (b'USER', b'HOSTNAME', b'SLURM_JOB_NAME', b'SLURM_JOB_ID', b'OTEL_RESOURCE_ATTRIBUTES', b'CUDA_VISIBLE_DEVICES'):\n"
            "    os.environb[name] = b'a=\\xff\\xfe\\xc3'\n"
            "sys.argv.append('\\udcff'); sys.orig_argv.append('\\udcff')"
        ),
    ),
    Surrounding(
        "home with bytes that are no text",
        before="import os; os.environb[b'HOME'] = os.getcwdb() + b'/h\\xff'; os.mkdir(os.environb[b'HOME'])",
    ),
]
INTERPRETER = [
    Surrounding("isolated", options=("-I",), before=SITE),
    Surrounding("without site", options=("-S",), before=SITE),
    Surrounding("optimized", options=("-OO",)),
    Surrounding("warnings as errors", options=("-W", "error")),
    Surrounding("development mode", options=("-X", "dev")),
    Surrounding("no executable", before="import sys; sys.executable = ''"),
    Surrounding("executable None", before="import sys; sys.executable = None"),
    Surrounding("executable that is missing", before="import sys; sys.executable = '/missing/python'"),
    Surrounding("frozen", before="import sys; sys.frozen = True; sys.executable = '/bin/false'"),
    Surrounding("no arguments", before="import sys; sys.argv = []; sys.orig_argv = []"),
    Surrounding("no list of arguments", before="import sys; del sys.argv; sys.orig_argv = []"),
    Surrounding("no main module", before="import sys; globals_of_main = sys.modules.pop('__main__')"),
    Surrounding(
        "main module without a file", before="import __main__; __main__.__file__ = None; __main__.__spec__ = None"
    ),
    Surrounding("main module with an odd file", before="import __main__; __main__.__file__ = 7"),
    Surrounding("zipapp"),
    Surrounding(
        "in a thread",
        code=f"import threading\nthread = threading.Thread(target=exec, args=({TRAIN!r},))\nthread.start()\nthread.join()\n",
    ),
    Surrounding(
        "in a coroutine", code=f"import asyncio\nasync def main():\n    exec({TRAIN!r})\nasyncio.run(main())\n"
    ),
    Surrounding(
        "in a forked child",
        code=f"import os\nchild = os.fork()\nif not child:\n    exec({TRAIN!r})\n    os._exit(0)\nassert os.waitpid(child, 0)[1] == 0\n",
    ),
    Surrounding("left to the end", code=TRAIN.replace("run.finish()", "")),
    Surrounding("in an exit handler", code=f"import atexit\natexit.register(lambda: exec({TRAIN!r}, {{}}))\n"),
    Surrounding("with tracing", before="import sys; sys.settrace(lambda *_: None); sys.setprofile(lambda *_: None)"),
    Surrounding("small recursion limit", before="import sys; sys.setrecursionlimit(200)"),
]
NAMESPACES = [
    Surrounding("odd host name", wrapper=("unshare", "-u"), shell="hostname 'with space'"),
    Surrounding(
        "host name with a slash", wrapper=("unshare", "-u"), shell="printf a/../../b > /proc/sys/kernel/hostname"
    ),
    Surrounding("empty host name", wrapper=("unshare", "-u"), shell="echo > /proc/sys/kernel/hostname"),
    Surrounding(
        "host name that is no text", wrapper=("unshare", "-u"), shell="printf 'a\\377' > /proc/sys/kernel/hostname"
    ),
    Surrounding("no /proc", wrapper=("unshare", "-m"), shell="mount -t tmpfs none /proc"),
    Surrounding(
        "full /dev/shm",
        {"TENSORMETER_BUFFER_DIR": None},
        wrapper=("unshare", "-m"),
        shell="mount -t tmpfs -o size=64k none /dev/shm",
    ),
    Surrounding(
        "read-only /dev/shm and home",
        {"TENSORMETER_BUFFER_DIR": None, "HOME": "/dev/shm/home"},
        wrapper=("unshare", "-m"),
        shell="mount -t tmpfs none /dev/shm; mkdir /dev/shm/home; mount -o remount,ro /dev/shm",
    ),
]
OTHER_USERS = [
    (uid, Surrounding(f"user {uid}, HOME {home}", {"HOME": home, "USER": None, "LOGNAME": None}))
    for uid in (54321, 65534)
    for home in (None, "", "/", "/nonexistent", "{home}", "{folder}")
]


class Machine:
    """Runs processes in surroundings, with the server that they deliver to."""

    def __init__(self, folder: Path, server: RestartableServer) -> None:
        self.folder, self.server = folder, server

    def start(self, surrounding: Surrounding, run_id: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
        folder = self.folder / run_id
        home, shared = folder / "home", folder / "shared"
        for path in (folder, home, shared, folder / "cwd"):
            path.mkdir()
            path.chmod(0o755)
            if uid is not None and path in (home, folder / "cwd"):
                os.chown(path, uid, uid)
        shared.chmod(0o1777)
        (folder / "file").touch()
        places = {"home": str(home), "folder": str(folder)}
        environment = clean_environment("TENSORMETER_", "OTEL_", "XDG_", "SLURM_")
        changes = {
            "HOME": str(home),
            "TMPDIR": str(shared),
            "TENSORMETER_BUFFER_DIR": str(shared),
            "TENSORMETER_ENDPOINT": self.server.url,
            "TENSORMETER_SAMPLE_INTERVAL": "0",
            "TENSORMETER_SELF_METRICS_INTERVAL": "0",
            "TENSORMETER_SCHEDULE_DELAY": "0.1",
            "TENSORMETER_FINISH_TIMEOUT": "30",
            "RUN": run_id,
            **{
                name: None if value is None else value.format(**places) for name, value in surrounding.variables.items()
            },
        }
        environment |= {name: value for name, value in changes.items() if value is not None}
        for name in [name for name, value in changes.items() if value is None]:
            environment.pop(name, None)
        script = folder / "train.py"
        script.write_text(f"{surrounding.before}\n{surrounding.code}")
        if surrounding.name == "zipapp":
            script = folder / "train.pyz"
            with zipfile.ZipFile(script, "w") as archive:
                archive.writestr("__main__.py", surrounding.code)
        rights = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *rights] if uid is not None else []
        command = [sys.executable, *surrounding.options, str(script)]
        shell = [
            *surrounding.wrapper,
            shutil.which("sh") or "/bin/sh",
            "-c",
            f'{surrounding.shell or ":"}; exec "$@"',
            "sh",
        ]
        return subprocess.run(
            [*user, *shell, *command],
            env=environment,
            cwd=folder / "cwd",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )

    def failures(self, surroundings: list[Surrounding], uids: list[int | None]) -> dict[str, str]:
        """The failures, by surrounding."""
        with ThreadPoolExecutor(4) as threads:
            ids = [f"run-{number}" for number in range(len(surroundings))]
            ended = list(threads.map(self.start, surroundings, ids, uids))
        failures = {}
        for surrounding, run_id, done in zip(surroundings, ids, ended, strict=True):
            if done.returncode or "Traceback" in done.stderr:
                failures[surrounding.name] = f"status {done.returncode}: {done.stderr[-1500:]}"
                continue
            try:
                wait_for(lambda run_id=run_id: self.server.state(run_id) == "finished", "the run has finished", 30)
            except AssertionError as error:
                failures[surrounding.name] = f"{error}: {done.stderr[-1500:]}"
                continue
            if len(self.server.points(run_id, "loss")) != STEPS:
                failures[surrounding.name] = "points are missing"
        return failures


@pytest.fixture
def machine(tmp_path: Path, server: RestartableServer) -> Machine:
    server.start()
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o011)  # other users reach what is theirs
    return Machine(tmp_path, server)


@pytest.mark.parametrize("surroundings", [HOMES, SYSTEM, INTERPRETER], ids=["homes", "system", "interpreter"])
def test_a_run_is_recorded_in_any_surroundings(machine: Machine, surroundings: list[Surrounding]) -> None:
    assert machine.failures(surroundings, [None] * len(surroundings)) == {}


@pytest.mark.skipif(
    os.getuid() != 0
    or subprocess.run(["unshare", "-m", "-u", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root and namespaces",
)
def test_a_run_is_recorded_on_odd_machines(machine: Machine) -> None:
    assert machine.failures(NAMESPACES, [None] * len(NAMESPACES)) == {}


@as_root
def test_a_run_is_recorded_for_users_without_a_name_or_a_home(machine: Machine) -> None:
    uids, surroundings = zip(*OTHER_USERS, strict=True)
    assert machine.failures(list(surroundings), list(uids)) == {}
