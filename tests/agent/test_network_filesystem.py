"""Spools on network file systems: seen from the table of mounts, and then without memory that others cannot share."""

import errno
import fcntl
import os
import threading

import psutil
import pytest

import tensormeter
from tensormeter import Settings
from tensormeter.agent.spool.request import Encoded
from tensormeter.agent.spool.spool import Spool
from tensormeter.cli.doctor_checks import spool as spool_check
from tensormeter.disk.mounts import network_filesystem


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Says that a folder is on a file system of some kind."""

    def mounted(kind, folder=tmp_path):
        proc = tmp_path / "proc" / "self"
        proc.mkdir(parents=True, exist_ok=True)
        (proc / "mounts").write_text(f"/dev/root / ext4 rw 0 0\nsomewhere {folder} {kind} rw 0 0\n")
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))

    return mounted


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        *(
            ("nfs4", True),
            ("lustre", True),
            ("beegfs", True),
            ("cifs", True),
            ("fuse.sshfs", True),
            ("fuse.gcsfuse", True),
        ),
        *(("ext4", False), ("tmpfs", False), ("overlay", False), ("fuse.fuse-overlayfs", False), ("fuseblk", False)),
    ],
)
def test_kinds(mounted, tmp_path, kind, network):
    mounted(kind)
    (tmp_path / "deep" / "folder").mkdir(parents=True)
    assert network_filesystem(tmp_path / "deep" / "folder") == (kind if network else None)
    assert network_filesystem(tmp_path.parent) is None


def test_a_link_leads_to_where_it_leads(mounted, tmp_path):
    far = tmp_path / "far"
    far.mkdir()
    mounted("nfs", far)
    (tmp_path / "link").symlink_to(far)
    assert network_filesystem(tmp_path / "link") == "nfs"


def test_a_spool_there_needs_no_shared_memory(mounted, tmp_path):
    """And two that have it open, as the agent and its delivery, wait for each other."""
    mounted("nfs4")
    path = tmp_path / "spool.sqlite"
    spool = Spool(path)
    assert spool._database.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    delivered = []

    def deliver():
        other = Spool(path)
        while len(delivered) < 200:
            request = other.next("a")
            if request is not None:
                delivered.append(request[1].body)
                other.done("a", request[0])
        other.close()

    thread = threading.Thread(target=deliver)
    thread.start()
    for number in range(200):
        spool.put([Encoded("metrics", b"%d" % number, 1)], ["a"], "p", {}, started=True, ended=False)
        assert not path.with_name("spool.sqlite-shm").exists()
    thread.join(300)
    assert delivered == [b"%d" % number for number in range(200)]
    assert spool.pending() == 0
    spool.close()


def test_a_log_of_a_local_disk_is_carried_over(mounted, tmp_path):
    """A run's folder that was copied to a network file system."""
    path = tmp_path / "spool.sqlite"
    spool = Spool(path)
    spool.put([Encoded("metrics", b"1", 1)], ["a"], "p", {}, started=True, ended=False)
    spool.close()
    mounted("nfs4")
    spool = Spool(path)
    assert spool.next("a")[1].body == b"1"
    assert spool._database.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    spool.close()


@pytest.fixture
def unlockable(tmp_path, monkeypatch):
    """A folder whose files cannot be locked: some NFS servers, and Lustre mounted without `flock`, are like this."""
    state, real = tmp_path / "state", fcntl.flock
    state.mkdir()

    def flock(file, operation):
        descriptor = file if isinstance(file, int) else file.fileno()
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(state)):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    return state


def test_doctor_says_that_files_cannot_be_locked(unlockable):
    finding = spool_check(Settings(directory=unlockable))
    assert finding.state == "warning"
    assert os.strerror(errno.ENOLCK) in finding.summary
    assert "TENSORMETER_DIR" in finding.advice


def test_where_files_cannot_be_locked_the_run_is_kept_in_memory(unlockable, receiver, run_settings, caplog):
    """The reason is said."""
    run = tensormeter.init("network", settings=run_settings(directory=unlockable, agent="process", run_id="nolocks"))
    for step in range(100):
        run.log({"loss": step / 7}, step)
    run.finish(timeout=300)
    assert "is kept in memory" in caplog.text
    assert os.strerror(errno.ENOLCK) in caplog.text
    assert len(receiver.rows()) == 100
