"""The file system that tests of odd disks use has the manners that it is told to have."""

import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path

import psutil
import pytest


def test_files_are_kept(odd_disk):
    disk = odd_disk()
    (disk.path / "folder").mkdir()
    file = disk.path / "folder" / "file"
    file.write_bytes(b"one")
    with file.open("ab") as appended:
        appended.write(b" two")
    file.rename(disk.path / "other")
    assert (disk.path / "other").read_bytes() == (disk.backing / "other").read_bytes() == b"one two"
    assert os.listdir(disk.path / "folder") == []
    with (disk.path / "other").open("r+b") as other, mmap.mmap(other.fileno(), 0) as mapped:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mapped[:3] = b"ONE"
        mapped.flush()
    assert (disk.backing / "other").read_bytes() == b"ONE two"


def test_a_file_that_is_open_can_be_used_after_it_was_deleted(odd_disk):
    disk = odd_disk()
    disk.behave(refuse=["rename"])
    with (disk.path / "file").open("w+b") as file:
        (disk.path / "file").unlink()
        assert not (disk.path / "file").exists()
        file.write(b"content")
        file.seek(0)
        assert file.read() == b"content"


def test_without_maps(odd_disk):
    disk = odd_disk(maps=False)
    (disk.path / "file").write_bytes(bytes(4096))
    with (disk.path / "file").open("r+b") as file, pytest.raises(OSError) as refusal:
        mmap.mmap(file.fileno(), 0)
    assert refusal.value.errno == errno.ENODEV


def test_without_locks(odd_disk):
    disk = odd_disk(locks=False)
    with (disk.path / "file").open("w") as file:
        for lock in (fcntl.flock, fcntl.lockf):
            with pytest.raises(OSError) as refusal:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert refusal.value.errno == errno.ENOLCK


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOSPC", "EDQUOT", "EROFS"])
def test_writes_fail_until_they_work(odd_disk, name):
    disk = odd_disk()
    (disk.path / "file").write_bytes(b"before")
    disk.behave(fail_writes=name)
    with pytest.raises(OSError) as failure:
        (disk.path / "new").write_bytes(b"")
    assert failure.value.errno == getattr(errno, name)
    assert (disk.path / "file").read_bytes() == b"before"
    assert disk.failed >= 1  # the kernel tries again what is stale
    disk.behave(fail=name)
    with pytest.raises(OSError) as failure:
        os.listdir(disk.path)
    assert failure.value.errno == getattr(errno, name)
    disk.behave()
    (disk.path / "new").write_bytes(b"after")
    assert sorted(os.listdir(disk.path)) == ["file", "new"]


def test_some_operations_fail(odd_disk):
    disk = odd_disk()
    disk.behave(fail="EIO", rate=0.5)
    failures = 0
    for _ in range(100):
        try:
            os.listdir(disk.path)
        except OSError:
            failures += 1
    assert 0 < failures < 100
    assert disk.failed >= failures


@pytest.mark.parametrize(
    ("operation", "number"),
    [("fsync", errno.EINVAL), ("rename", errno.ENOSYS), ("link", errno.EPERM), ("fallocate", errno.EOPNOTSUPP)],
)
def test_operations_that_it_lacks(odd_disk, operation, number):
    disk = odd_disk()
    disk.behave(refuse=[operation])
    path, other = disk.path / "file", disk.path / "other"
    with path.open("wb") as file:
        file.write(b"content")
        file.flush()
        operations = {
            "fsync": lambda: os.fsync(file.fileno()),
            "rename": lambda: path.rename(other),
            "link": lambda: other.hardlink_to(path),
            "fallocate": lambda: os.posix_fallocate(file.fileno(), 0, 8192),
        }
        if operation == "fallocate":  # the C library writes zeros instead
            operations[operation]()
            assert path.stat().st_size == 8192
        else:
            with pytest.raises(OSError) as refusal:
                operations[operation]()
            assert refusal.value.errno == number
    assert disk.failed >= 1
    if operation == "fsync":
        folder = os.open(disk.path, os.O_RDONLY)
        with pytest.raises(OSError):
            os.fsync(folder)
        os.close(folder)


def test_it_hangs_until_it_is_released(odd_disk):
    disk = odd_disk()
    disk.behave(hang=True)
    thread = threading.Thread(target=os.listdir, args=(disk.path,))
    thread.start()
    while not disk.hanging:
        threading.Event().wait(0.01)
    assert thread.is_alive()
    disk.behave(latency=0.01)
    thread.join(300)
    assert not thread.is_alive()


def test_nothing_is_left_behind_though_it_hangs(odd_disk):
    disk = odd_disk(kind="odd")
    assert [mount.fstype for mount in psutil.disk_partitions(all=True) if mount.mountpoint == str(disk.path)] == [
        "fuse.odd"
    ]
    disk.behave(hang=True)
    failures = []

    def look() -> None:
        try:
            os.listdir(disk.path)
        except OSError as failure:
            failures.append(failure)

    thread = threading.Thread(target=look)
    thread.start()
    while not disk.hanging:
        threading.Event().wait(0.01)
    disk.close()
    thread.join(300)
    assert failures
    assert not [mount for mount in psutil.disk_partitions(all=True) if Path(mount.mountpoint) == disk.path]
