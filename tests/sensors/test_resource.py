"""The description of the sender: the run's processes, its nodes, the job, the commit; and no secret."""

import os
import platform
import subprocess
import sys
import uuid
from importlib.metadata import version
from pathlib import Path

import pytest

from support.processes import run_python
from tensormeter.resource import describe_node, describe_process
from tensormeter.resource.cluster import _RANK, describe_cluster, describe_rank
from tensormeter.resource.command import mask_secrets
from tensormeter.resource.revision import describe_revision


def describe(**changes):
    return describe_process(**{"project": "p", "run_id": "r", "run_name": "n", "process": "i"} | changes)


def test_a_process_is_described(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=vision,service.instance.id=mine,host.name=other")
    monkeypatch.chdir(tmp_path)
    resource = describe()
    expected = {
        "host.name": "other",
        "os.type": platform.system().lower(),
        "process.pid": os.getpid(),
        "process.parent_pid": os.getppid(),
        "process.executable.path": sys.executable,
        "process.runtime.name": "cpython",
        "process.runtime.version": platform.python_version(),
        "process.working_directory": str(tmp_path),
        "process.command_args": resource["process.command_args"],
        "service.name": "p",
        "service.instance.id": "i",
        "team": "vision",
        "tensormeter.process.kind": "training",
        "tensormeter.gpu.visible_devices": "3",
        "tensormeter.rank": 3,
        "tensormeter.world_size": 8,
        "tensormeter.run.id": "r",
        "tensormeter.run.name": "n",
    }
    assert {name: resource.get(name) for name in expected} == expected
    assert "process.command_args" not in describe(command=False)


def test_attributes_that_users_give_hold_no_secrets(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=vision,api.token=Zq7XWmK2pL,db=postgres://u:Zq7XWmK2pL@h/x")
    resource = describe(
        given={"password": "Zq7XWmK2pL", "process.command_line": "train.py --key 1 --pwd Zq7XWmK2pL", "n": (1, 2)}
    )
    assert "Zq7XWmK2pL" not in str(resource)
    assert (resource["team"], resource["db"], resource["n"]) == ("vision", "postgres://***@h/x", (1, 2))


def test_versions_of_torch_are_found_without_importing_it():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    code = (
        "import json, sys; from tensormeter.resource import describe_process; d = describe_process('p', 'r', 'n', 'i');"
    )
    code += "assert 'torch' not in sys.modules; print(d['tensormeter.torch.version'])"
    output = run_python("-c", code, check=True).stdout.strip()
    assert output == version("torch")
    assert describe()["tensormeter.torch.version"] == torch.__version__
    assert type(describe()["tensormeter.torch.version"]) is str
    assert describe().get("tensormeter.torch.cuda.version") == torch.version.cuda


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024\nGCC version: 12\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.90.07  Release Build  (dvs-builder)\n",
    ],
)
def test_gpus_are_found_in_the_files_of_the_driver(monkeypatch, tmp_path, line):
    monkeypatch.setattr("tensormeter.resource.describe._PROC_NVIDIA", tmp_path)
    (tmp_path / "version").write_text(line)
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        folder = tmp_path / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\nBus Location: \t {bus}\n"
        )
    resource = describe()
    assert resource["tensormeter.gpu.models"] == ["NVIDIA H100 80GB HBM3"] * 2
    assert resource["tensormeter.gpu.driver_version"] == "550.90.07"
    assert describe_node(resource)["tensormeter.gpu.models"] == ["NVIDIA H100 80GB HBM3"] * 2


def test_a_node_is_the_same_for_all_its_processes(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first = describe(process="a")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    second = describe(process="b")
    node = describe_node(first)
    assert node == describe_node(second)
    assert uuid.UUID(node["service.instance.id"]).version == 5
    assert node["tensormeter.process.kind"] == "node"
    assert node["tensormeter.slurm.job.id"] == "77"
    assert (node["service.name"], node["tensormeter.run.id"], node["tensormeter.run.name"]) == ("p", "r", "n")
    assert node["host.name"] == first["host.name"]
    assert not [name for name in node if name.startswith("process.") or "rank" in name]
    others = [
        describe(run_id="s"),
        describe(project="q"),
        {**first, "host.name": "elsewhere"},
        {**first, "host.id": "other"},
    ]
    assert len({describe_node(item)["service.instance.id"] for item in [first, *others]}) == 5


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        (
            {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4", "SLURM_PROCID": "0"},
            {
                "tensormeter.rank": 5,
                "tensormeter.local_rank": 1,
                "tensormeter.world_size": 16,
                "tensormeter.local_world_size": 4,
            },
        ),
        (
            {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"},
            {"tensormeter.rank": 2, "tensormeter.local_rank": 0, "tensormeter.world_size": 4},
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
            {"tensormeter.rank": 1, "tensormeter.world_size": 2},
        ),
        (
            {"TENSORMETER_RANK": "1", "TENSORMETER_WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"},
            {"tensormeter.rank": 1, "tensormeter.world_size": 2},
        ),
        ({"TENSORMETER_RANK": "0", "RANK": "1"}, {"tensormeter.rank": 1}),
        ({"RANK": "first", "WORLD_SIZE": ""}, {}),
        ({"RANK": "first", "SLURM_PROCID": "2"}, {"tensormeter.rank": 2}),
        ({"RANK": "9" * 5000, "LOCAL_RANK": "-1", "WORLD_SIZE": "9" * 12, "LOCAL_WORLD_SIZE": "²"}, {}),
    ],
)
def test_ranks_are_read_from_every_launcher(monkeypatch, environment, expected):
    for variable in [name for names in _RANK.values() for name in names]:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert describe_rank() == expected


def test_jobs_are_read_from_every_scheduler(tmp_path):
    namespace = tmp_path / "namespace"
    namespace.write_text("training\n")
    environment = {
        "TORCHELASTIC_RUN_ID": "elastic",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "SLURM_JOB_ID": "4711",
        "SLURMD_NODENAME": "gpu-07",
        "HOSTNAME": "trainer-0",
        "POD_UID": "0af1",
    }
    slurm = {
        "tensormeter.torchrun.run_id": "elastic",
        "tensormeter.torchrun.restart_count": "2",
        "tensormeter.slurm.job.id": "4711",
        "tensormeter.slurm.node.name": "gpu-07",
    }
    assert describe_cluster(environment, namespace) == slurm
    assert describe_cluster(environment | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, namespace) == slurm | {
        "k8s.namespace.name": "training",
        "k8s.pod.name": "trainer-0",
        "k8s.pod.uid": "0af1",
    }


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["train.py", "--lr", "1e-3", "seed=7"], ["train.py", "--lr", "1e-3", "seed=7"]),
        (["--token", "abc", "--epochs", "3"], ["--token", "***", "--epochs", "3"]),
        (["--api-key=abc", "db.password=x y"], ["--api-key=***", "db.password=***"]),
        (["--hub_token", "--epochs", "3"], ["--hub_token", "--epochs", "3"]),
        (
            ["--tokenizer", "bpe", "--max-tokens", "9", "--author", "me"],
            ["--tokenizer", "bpe", "--max-tokens", "9", "--author", "me"],
        ),
        (["s3://me:pw@host/bucket"], ["s3://***@host/bucket"]),
        (["--note=see hf_abcdefghijklmnopqrstuv"], ["--note=see ***"]),
        (["--header", "Authorization: Bearer abc.def"], ["--header", "Authorization: Bearer ***"]),
        (["--url", "https://host/?k=the-value-of-it"], ["--url", "https://host/?k=***"]),
        (["-c", "x" * 300], ["-c", "x" * 256 + "..."]),
        (["a"] * 65, ["a"] * 64 + ["..."]),
    ],
)
def test_secrets_in_a_command_line_are_masked(arguments, shown):
    environment = {"MY_SECRET": "the-value-of-it", "SHORT_TOKEN": "a", "HOME": "train.py"}
    assert mask_secrets(arguments, environment) == shown


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "remote", "add", "origin", "https://me:secret@example.com/team/repository.git")
    (folder / "file").write_text("1")
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_the_commit_is_found_without_git(repository):
    (repository / "src").mkdir()
    expected = {
        "vcs.ref.head.name": "main",
        "vcs.ref.head.revision": git(repository, "rev-parse", "HEAD"),
        "vcs.repository.url.full": "https://example.com/team/repository.git",
    }
    assert describe_revision(repository / "src") == expected
    git(repository, "pack-refs", "--all")
    assert describe_revision(repository) == expected
    git(repository, "checkout", "--quiet", "--detach")
    del expected["vcs.ref.head.name"]
    assert describe_revision(repository) == expected


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://me:pa@Zq7XWmK2pL@example.com/team/repository.git", "https://example.com/team/repository.git"),
        ("https://example.com/team/repository.git?private_token=Zq7XWmK2pL", "https://example.com/team/repository.git"),
        ("https://me:Zq7X#WmK2pL@example.com/team/repository.git", "https://example.com/team/repository.git"),
        ("git@example.com:team/repository.git", "git@example.com:team/repository.git"),
        ("oauth2:Zq7XWmK2pL@example.com:team/repository.git", "example.com:team/repository.git"),
    ],
)
def test_the_remote_is_shown_without_secrets(repository, remote, shown):
    git(repository, "remote", "set-url", "origin", remote)
    assert describe_revision(repository)["vcs.repository.url.full"] == shown


def test_the_commit_of_a_worktree_is_found(repository, tmp_path):
    git(repository, "worktree", "add", "--quiet", "-b", "team/idea", str(tmp_path / "tree"))
    revision = describe_revision(tmp_path / "tree")
    assert revision["vcs.ref.head.name"] == "team/idea"
    assert revision["vcs.ref.head.revision"] == git(repository, "rev-parse", "HEAD")
    assert revision["vcs.repository.url.full"].startswith("https://example.com")


def test_no_commit_yet_and_no_repository(tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    assert describe_revision(tmp_path) == {"vcs.ref.head.name": "main"}
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert describe_revision(tmp_path) == {}
    assert "vcs.ref.head.revision" not in describe_revision(Path("/"))
