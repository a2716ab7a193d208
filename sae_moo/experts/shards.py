"""Which copy of a tensor counts where a model's weights lie in several files: the one that the index names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sae_moo.errors import InputError, first_few, itemized


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where each tensor of a model is read.

    Args:
        files: tensor name -> the file that counts for it.
        doubled: names that lie in more than one file, whichever counts.
        notes: what the user should know, a sentence each.
    """

    files: Mapping[str, Path]
    doubled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def weight_map(index: Path, document: Mapping[str, Any]) -> dict[str, Path]:
    """Return tensor name -> file, as an index of shards says.

    Args:
        index: the file.
        document: what it holds.

    Raises:
        InputError: if it says something else, or names files elsewhere or none that is there.
    """
    named = document.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise InputError(f"{index}: expected an object 'weight_map' of tensor names and file names")
    if not named:
        raise InputError(f"{index}: expected a 'weight_map' of tensor names and file names, it is empty")
    shards = sorted(set(named.values()))
    outside = [shard for shard in shards if not _within(shard)]
    if outside:
        raise InputError(f"{index}: expected names of files in the folder, got {', '.join(map(repr, outside[:3]))}")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise InputError(f"{index.parent}: shards named in {index.name} are missing: {', '.join(missing[:8])}")
    return {name: index.parent / shard for name, shard in named.items()}


def assigned(
    index: Path,
    named: Mapping[str, Path],
    held: Mapping[Path, Collection[str]],
    equal: Callable[[str, Path, Path], bool],
) -> Assignment:
    """Return which file counts for each tensor.

    That is the file which the index names. A tensor that lies elsewhere, in one shard, is that one; one that the index
    does not name is a tensor of the model nevertheless, as it is to transformers.

    Args:
        index: the index, for messages.
        named: tensor name -> file, as the index says.
        held: file -> names of the tensors in it.
        equal: says whether a tensor is the same in two files.

    Raises:
        InputError: naming tensors of the index that no shard holds, and those that several hold, of which the index
            chooses none.
    """
    holders: dict[str, list[Path]] = {}
    for file, names in held.items():
        for name in names:
            holders.setdefault(name, []).append(file)
    files: dict[str, Path] = {}
    lost: list[str] = []
    doubtful: list[str] = []
    moved: list[str] = []
    unnamed: list[str] = []
    doubled: list[str] = []
    for name in {**dict.fromkeys(named), **dict.fromkeys(holders)}:
        where = holders.get(name, [])
        if len(where) > 1:
            doubled.append(name)
        if named.get(name) in where:
            files[name] = named[name]
        elif not where:
            lost.append(f"no tensor {name} in {named[name].name}, nor in another shard")
        elif all(equal(name, where[0], other) for other in where[1:]):
            files[name] = where[0]
            (moved if name in named else unnamed).append(name)
        else:
            doubtful.append(f"tensor {name} differs in {_listed(where)}, and the index chooses none of them")
    faults = [*first_few(lost), *first_few(doubtful)]
    if faults:
        raise InputError(itemized(f"{index}: the shards do not hold what it names", faults, within=True))
    return Assignment(files, tuple(doubled), tuple(_notes(index, moved, unnamed, doubled)))


def _notes(index: Path, moved: list[str], unnamed: list[str], doubled: list[str]) -> Iterator[str]:
    if doubled:
        yield f"{index}: {_counted(doubled)} in several shards; the one that the index names counts"
    if moved:
        yield f"{index}: {_counted(moved)} in another shard than the index says, and read there"
    if unnamed:
        yield f"{index}: {_counted(unnamed)} in the shards though not in the index, and read"


def _counted(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...) are"


def _listed(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)


def _within(name: str) -> bool:
    """Say whether a file's name stays in the folder, whatever the system's separator is."""
    path = PurePosixPath(name)
    return bool(name) and "\\" not in name and "\0" not in name and not path.is_absolute() and ".." not in path.parts
