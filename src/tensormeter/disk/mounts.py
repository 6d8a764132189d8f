"""Detection of network file systems and of missing file system features."""

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Final

import psutil

__all__ = ["missing_features", "network_filesystem"]

_NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs3", "nfs4"),
        *("ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "vboxsf", "wekafs"),
    }
)

_LOCAL_FUSE: Final = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.mergerfs", "fuse.ntfs-3g", "fuse.unionfs"})
"""FUSE file systems whose files are local. Files on any other FUSE file system may be remote."""


def network_filesystem(path: Path) -> str | None:
    """Return the type of network file system that contains a folder, such as `nfs4`; None if it is local or unknown."""
    real = os.path.realpath(path)
    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return None
    best, kind = "", ""
    for mount in mounts:  # if several are mounted at the same path, the last one is visible
        inside = os.path.commonpath([real, mount.mountpoint]) == mount.mountpoint
        if inside and len(mount.mountpoint) >= len(best):
            best, kind = mount.mountpoint, mount.fstype
    return kind if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE) else None


def missing_features(folder: Path) -> set[str]:
    """Return the features that a folder's file system lacks: `maps` (shared memory mappings) and `fsync`.

    This function tries the features on a small file, and blocks on the disk. Errors of a failing disk do not count as
    missing features.
    """
    missing = set()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            try:
                mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
            except OSError as error:
                if error.errno in _LACKING:
                    missing.add("maps")
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno in _LACKING:
                    missing.add("fsync")
    except OSError:
        pass
    return missing


_LACKING: Final = (errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
