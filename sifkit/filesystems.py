"""What a mount table says of a path, and what kinds of filesystems are. Pure."""

from __future__ import annotations

from pathlib import Path

# As /proc/mounts names them: data on other machines, slow for many small files, locks often missing or late.
NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "fuse.ceph", "fuse.sshfs"),
        *("9p", "afs", "panfs", "orangefs", "wekafs", "fuse.glusterfs", "fuse.juicefs", "fuse.dfuse"),
    )
)
MEMORY = frozenset({"tmpfs", "ramfs"})


def mounted_type(path: Path, mounts: str) -> str:
    """Of the mount that holds `path`, which is absolute and has no links; the disk is not touched."""
    best, kind = Path("/"), ""
    for line in mounts.splitlines():
        _, point, fstype, *_ = line.split()
        where = Path(point.replace("\\040", " "))
        if (path == where or where in path.parents) and len(where.parts) >= len(best.parts):
            best, kind = where, fstype
    return kind
