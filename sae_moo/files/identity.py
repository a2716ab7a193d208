"""What tells a file from another that lies, or lay, in the same place: for what is remembered about files.

No single fact does on every file system. Sizes agree between models of one architecture. Images and stores set all time
stamps to one value (reproducible container layers, Nix, OSTree), and a copy may keep those of its source. Change times
and inodes cannot be set by a user, but images that are mounted have them frozen. So all of them count, and content
besides: the header of a safetensors file whole, and of each tensor in it a share of the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

WHOLE = 1 << 26
"""Files of so many bytes together, or fewer, are read whole."""
BLOCK = 4096
"""Bytes that are read in one place: what a disk reads at least."""
BLOCKS = 4096
"""In how many places larger files are read, roughly; in each tensor at both ends at least."""
_LONGEST_HEADER = 100_000_000  # the safetensors library takes no longer one


def state(files: Iterable[Path]) -> list[tuple[Any, ...]]:
    """Return what the file system says of files: name, size, inode, times of the last modification and change."""
    facts = []
    for file in files:
        stat = file.stat()
        facts.append((file.name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns))
    return facts


def stamp(folder: Path, files: Iterable[Path], facts: Any) -> str:
    """Return a name for what files hold now, to remember something under.

    It is made of the folder, the further facts, what the file system says (`state`), and content: all of it where the
    files have no more than `WHOLE` bytes together; else the headers, and `BLOCKS` blocks of the tensors, more of the
    larger ones and both ends of each, whole tensors where they are small. Two different files of one name, size, inode
    and change time, which no file system that is written to shows, may so share a stamp only if they are equal in all
    blocks.

    Args:
        folder: where the files lie.
        files: the files; of safetensors all tensors are looked into, of others the whole is.
        facts: what else counts; JSON.
    """
    ordered = sorted(files)
    whole = hashlib.sha256(json.dumps([str(folder), state(ordered), facts]).encode())
    size = sum(file.stat().st_size for file in ordered)
    for file in ordered:
        with file.open("rb", buffering=0) as handle:
            if size <= WHOLE or file.suffix != ".safetensors":
                while part := handle.read(1 << 20):
                    whole.update(part)
            else:
                _sample(handle, size, whole)
    return whole.hexdigest()


def _sample(handle: BinaryIO, size: int, whole: Any) -> None:
    """Add the header of a safetensors file and blocks of its tensors to a digest."""
    length = int.from_bytes(handle.read(8), "little")
    header = handle.read(min(length, _LONGEST_HEADER))
    whole.update(header)
    for name, described in json.loads(header).items():
        if name == "__metadata__":
            continue
        first, last = (8 + length + offset for offset in described["data_offsets"])
        count = max(2, round(BLOCKS * (last - first) / size))
        if last - first <= count * BLOCK:
            whole.update(_read(handle, first, last - first))
            continue
        step = (last - first - BLOCK) / (count - 1)
        for i in range(count):
            whole.update(_read(handle, first + round(i * step), BLOCK))


def _read(handle: BinaryIO, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)
