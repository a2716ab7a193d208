from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sae_moo.errors import InputError, StorageError, no_room
from sae_moo.files import disks
from sae_moo.files.disks import mount_of, unplaced
from sae_moo.files.room import writing
from sae_moo.files.whole import whole_file, whole_folder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WORDS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:4 / /proc rw - proc proc rw
30 21 0:40 / /home rw,relatime shared:5 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/me/local\040disk rw - xfs /dev/sdb1 rw
32 21 0:42 / /mnt/share rw - cifs //box/share rw
33 21 0:43 / /mnt/ssh rw - fuse.sshfs me@host: rw
34 21 0:44 / /mnt/over rw - fuse.fuse-overlayfs fuse-overlayfs rw
35 21 0:45 / /mnt/share rw - tmpfs tmpfs rw
not a line of it
36 21 0:46
"""


@pytest.mark.parametrize(
    ("place", "kind", "shared"),
    [
        ("/etc", "ext4", False),
        ("/home/me/runs", "nfs4", True),
        ("/homely", "ext4", False),
        ("/home/me/local disk/runs", "xfs", False),
        ("/mnt/share/x", "tmpfs", False),  # mounted over what was there
        ("/mnt/ssh", "fuse.sshfs", True),
        ("/mnt/over/x", "fuse.fuse-overlayfs", False),
    ],
)
def test_what_a_place_lies_on_and_whether_others_may_have_it_too(tmp_path, place, kind, shared):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    found = mount_of(Path(place), tmp_path / "mountinfo")
    assert (found.kind, found.shared) == (kind, shared)


def test_a_system_that_does_not_tell_its_mounts(tmp_path):
    assert mount_of(tmp_path, tmp_path / "nothing") is None
    (tmp_path / "empty").touch()
    assert mount_of(tmp_path, tmp_path / "empty") is None


def test_this_machines_own_mounts_are_read():
    if not disks.MOUNTS.exists():
        pytest.skip("no /proc/self/mountinfo")
    assert mount_of(Path("/proc")).kind == "proc"


@pytest.mark.parametrize(
    "error",
    [FULL, WORDS, OSError(errno.EDQUOT, "x"), OSError(errno.EFBIG, "x"), RuntimeError("database or disk is full")],
)
def test_want_of_room_is_known_by_number_and_by_words(error):
    assert no_room(error)
    wrapped = RuntimeError("an exception is raised during the commit")
    wrapped.__cause__ = error
    assert no_room(wrapped) == no_room(error)
    with pytest.raises(StorageError, match=r"^out: .*; what was finished before is kept$"), writing("out"):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "x"), ValueError("x"), InputError("No space left on device")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, writing("out"):
        raise error
    assert caught.value is error


def test_where_nobody_named_the_place_the_full_disks_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c/d"))
    assert unplaced(ValueError("x")) is None
    assert unplaced(OSError(errno.ENOSPC, "full", "/a/b")).message == "/a/b: full; what was finished before is kept"
    monkeypatch.setattr(disks, "_room", lambda place: 0 if str(place).startswith(str(tmp_path / "c")) else 1 << 30)
    assert unplaced(FULL).message.startswith(f"{tmp_path}/c/d/sae_moo: No space left")
    monkeypatch.setattr(disks, "_room", lambda place: 1 << 30)
    assert unplaced(FULL).message.startswith("a disk: No space left")


@pytest.mark.parametrize("error", [FULL, WORDS])
def test_what_could_not_be_written_whole_leaves_nothing_and_names_the_output(tmp_path, error):
    output = tmp_path / "out"

    def half(whole, **more):
        with whole(output, **more) as partial:
            (partial / "a" if partial.is_dir() else partial).write_text("half")
            raise error

    with pytest.raises(StorageError, match=f"^{output}: No space left on device; what was finished"):
        half(whole_folder)
    output.write_text("before")
    with pytest.raises(StorageError, match=f"^{output}: No space left on device; what was finished"):
        half(whole_file, replace=True)
    assert output.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
