"""The code and the artifacts of a run, from a script in a git repository to the client and the command line."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import run_python
from support.servers import RestartableServer
from support.waiting import wait_for
from tensormeter.client import Client

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

TRAIN = """
import os, sys
import tensormeter
run = tensormeter.init("code", id=sys.argv[1], config={"lr": float(sys.argv[2])})
api_key = "sk-abcdefghijklmnop1234567"
for step in range(3):
    run.log({"loss": 1.0 / (step + 1)}, step=step)
run.log_artifact("small.pt", aliases=["best", "best"])
run.log_artifact("big.pt", name="big", step=1)
run.log_artifact("checkpoint", type="checkpoint", step=2)
run.log_artifact("gone.pt")
run.log_artifact("small.pt", name="other", step="seven")
run.log_artifact("s3://user:pw123456@bucket/model.pt?X-Amz-Signature=0123456789abcdef", step=2)
tensormeter.log_artifact(os, step=0)
run.finish()
tensormeter.log_artifact("late.pt")
run.log_artifact("late.pt")
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "small.pt").write_bytes(b"weights")
    with open(folder / "big.pt", "wb") as file:
        file.truncate(40 << 20)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "shard-0").write_bytes(b"0" * 10)
    (folder / "checkpoint" / "shard-1").write_bytes(b"1" * 10)
    (folder / ".gitignore").write_text("*.pt\ncheckpoint\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, timeout=300)
    return folder


def test_code_and_artifacts_arrive(repository: Path, server: RestartableServer, environment: dict[str, str]) -> None:
    server.start()
    environment |= {"TENSORMETER_RECORD_CODE": "1", "COLUMNS": "150", "TERM": "dumb"}
    first = run_python("train.py", "first", "0.1", environment=environment, folder=repository, check=True)
    assert "expected a path or an address, got a module" in first.stderr
    assert first.stderr.count("late.pt") == 1
    assert "log_artifact: there is no unfinished run" in first.stderr

    run = Client(server.url).run("first", "code")
    digests = {
        "small.pt": hashlib.sha256(b"weights").hexdigest(),
        "big": hashlib.sha256(bytes(40 << 20)).hexdigest(),
    }
    artifacts = wait_for(
        lambda: (items := {item.key: item for item in run.artifacts()}) and items["big"].digest and items,
        "the digest of a large file",
    )
    assert len(artifacts) == len(run.artifacts()) == 6
    assert {key: artifacts[key].digest for key in digests} == {key: f"sha256:{digests[key]}" for key in digests}
    small, folder = artifacts["small.pt"], artifacts["checkpoint"]
    assert (small.place, small.size, small.files) == (str(repository / "small.pt"), 7, 1)
    assert (small.aliases, small.step, small.type, small.problem) == (["best"], 2, "model", "")
    assert (folder.size, folder.files, folder.type, folder.body["folder"]) == (20, 2, "checkpoint", True)
    assert (artifacts["big"].step, artifacts["gone.pt"].problem) == (1, "it does not exist")
    assert artifacts["other"].step == 2
    assert "log_artifact('other'): ignored the step 'seven', and used that of the last row" in first.stderr
    stored = artifacts["model.pt"]
    assert (stored.digest, stored.problem) == (None, "the digests of addresses are not computed")
    assert "pw123456" not in stored.place
    assert "0123456789abcdef" not in stored.place
    assert stored.place.startswith("s3://")

    code = run.code
    assert code is not None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert code.commit == head.stdout.strip()
    assert (code.dirty, code.diff, code.untracked, code.problem) == (False, "", [], "")
    source = TRAIN.replace("sk-abcdefghijklmnop1234567", "***").replace("user:pw123456", "***")
    assert code.source == source.replace("0123456789abcdef", "***")
    assert code.script == str(repository / "train.py")
    assert {"numpy", "pytest"} <= {name.lower() for name in code.packages}
    assert len(run.events("tensormeter.run.code")) == 1

    (repository / "train.py").write_text(TRAIN + "print('\x1b[2J changed')\n")
    run_python("train.py", "second", "0.2", environment=environment | {"RANK": "1"}, folder=repository, check=True)
    assert Client(server.url).run("second", "code").code is None  # only rank 0 records it
    run_python("train.py", "third", "0.2", environment=environment, folder=repository, check=True)

    def cli(*arguments: str) -> str:
        done = run_python("-m", "tensormeter", *arguments, environment=environment, check=True)
        assert "\x1b" not in done.stdout
        return done.stdout

    lines = cli("show", "third").splitlines()
    assert any(line.split() == ["commit", code.commit[:12], f"({code.branch})"] for line in lines)
    assert any(line.split() == ["changes", "uncommitted,", "in", "1", "file"] for line in lines)
    assert any(line.split() == ["code", "tensormeter", "show", "third", "--code"] for line in lines)
    assert any(line.split()[:2] == ["artifact", "aliases"] for line in lines)
    assert any(line.split()[:6] == ["small.pt", "best", "2", "7", "B", digests["small.pt"][:12]] for line in lines)
    whole = cli("show", "third", "--code")
    assert "+print('\ufffd[2J changed')" in whole
    assert f"numpy=={code.packages['numpy']}" in whole

    compared = cli("diff", "first", "third").splitlines()
    assert {"- lr = 0.1", "+ lr = 0.2"} <= set(compared)
    assert compared[compared.index("packages") + 1] == "no differences"
    assert "+print('\ufffd[2J changed')" in compared[compared.index("source") :]
    assert "+ uncommitted changes:" in compared
    assert "source" not in cli("diff", "first", "third", "--only", "config")
    assert "code\nnot recorded for code/second" in cli("diff", "first", "second")


def test_a_killed_agents_artifact_is_described_by_the_next_one(
    repository: Path, server: RestartableServer, environment: dict[str, str]
) -> None:
    server.start()
    with open(repository / "big.pt", "r+b") as file:
        file.truncate(1 << 40)  # takes hours
    environment |= {"TENSORMETER_RECORD_CODE": "1", "TENSORMETER_LINGER_TIMEOUT": "4"}
    script = (
        "import sys, tensormeter\n"
        "run = tensormeter.init('code', id='killed')\n"
        "run.log_artifact('big.pt')\nprint('logged', flush=True)\nsys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=repository, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        client = Client(server.url)

        def artifact() -> object:
            runs = [run for run in client.runs("code") if run.id == "killed"]
            return runs and runs[0].artifacts()

        wait_for(artifact, "the size of the artifact")
        (lock,) = Path(environment["TENSORMETER_DIR"]).rglob("agent.lock")
        agent = int(lock.read_text().split()[0])
        os.kill(agent, signal.SIGKILL)
        process.communicate("\n", timeout=300)
    (only,) = wait_for(
        lambda: (items := client.run("killed", "code").artifacts()) and items[0].problem and items,
        "the end of the next agent",
        30,
    )
    assert (only.digest, only.size) == (None, 1 << 40)
    assert only.problem == "the agent ended before it was done"
    assert len(client.run("killed", "code").events("tensormeter.run.code")) == 1
