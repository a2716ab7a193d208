"""The disks that places lie on: which have no room left, and which are shared with other machines."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sae_moo.errors import StorageError, no_room
from sae_moo.files import user_cache
from sae_moo.files.room import KEPT

LEAST = 1 << 16  # bytes; a disk with less is full: the writer that failed may have given back what it had
MOUNTS = Path("/proc/self/mountinfo")
SHARED = re.compile(r"nfs\d?|cifs|smb\w*|afs|ceph|gpfs|lustre|beegfs\w*|glusterfs|ocfs2|gfs2|9p|fuse|fuse\..+")
OWN = re.compile(r"fuse\.(fuse-overlayfs|snapfuse|squashfuse|portal|gvfsd.*|lxcfs)")  # of this machine alone


def unplaced(error: Exception) -> StorageError | None:
    """Return an error about a disk without room as one that names the place; None for any other.

    What a library wrote, and where, is not always told; the disks that have no room left are named then.
    """
    why = no_room(error)
    if why is None:
        return None
    named = getattr(error, "filename", None)
    places = [str(named)] if named else full()
    return StorageError(f"{' or '.join(places) or 'a disk'}: {why}; {KEPT}")


def full() -> list[str]:
    """Return which places that are written to lie on disks without room: current folder, temporary files, caches."""
    places = [Path.cwd()]
    try:
        places.append(Path(tempfile.gettempdir()))
    except FileNotFoundError:  # no folder for temporary files has room
        places += map(Path, filter(None, (os.environ.get("TMPDIR"), "/tmp")))
    places.append(user_cache.folder(""))
    return [str(place) for place in dict.fromkeys(places) if _room(place) < LEAST]


def _room(place: Path) -> int:
    """Return how many bytes a user may still write where a path is or would be."""
    while not place.exists() and place != place.parent:
        place = place.parent
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize if facts.f_blocks else LEAST  # /proc and the like have no blocks


@dataclass(frozen=True, slots=True)
class Mount:
    """What a path lies on.

    Args:
        kind: type of the file system, such as ``ext4`` or ``nfs4``.
        source: what is mounted, such as ``server:/export``.
    """

    kind: str
    source: str

    @property
    def shared(self) -> bool:
        """Whether other machines may have the same files, so that what is locked here may not be locked there."""
        return SHARED.fullmatch(self.kind) is not None and OWN.fullmatch(self.kind) is None

    def __str__(self) -> str:
        return f"{self.kind}, {self.source}"


def mount_of(place: Path, mounts: Path = MOUNTS) -> Mount | None:
    """Return what a path lies on; None where the system does not tell.

    Args:
        place: it need not exist.
        mounts: what the system tells, as Linux does (proc(5), mountinfo).
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = Path(os.path.realpath(place))
    best: tuple[int, Mount] | None = None
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields, described = before.split(), after.split()
        if not separator or len(fields) < 5 or len(described) < 2:
            continue
        point = Path(_unescaped(fields[4]))
        depth = len(point.parts)
        if real.is_relative_to(point) and (best is None or depth >= best[0]):  # the last one covers those before
            best = depth, Mount(described[0], _unescaped(described[1]))
    return None if best is None else best[1]


def _unescaped(text: str) -> str:
    """Return a name as it is: mountinfo writes white space and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
