"""Safetensors files written by hand, a tensor at a time, in shards named and split as transformers does.

A file is a little-endian 64-bit length, that many bytes of JSON (name -> dtype, shape, range of bytes; padded with
blanks to a multiple of eight), and the tensors' bytes in that order. So nothing but the tensor that is being written
is ever in memory, and equal tensors in equal order give equal files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_moo.errors import InputError
from sae_moo.experts.layout import stored_name

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Args:
        name: its name.
        shape: its shape.
        dtype: float32, bfloat16 or float16; of what no merge touches, whole numbers or truth values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


MOST_LIKELY_MEANT = 10**6
"""Bytes below which a number without a unit was hardly meant to be bytes."""


def shard_bytes(text: str) -> int:
    """Return a size written as transformers writes it, e.g. ``5GB`` or ``800MiB``, in bytes.

    Raises:
        InputError: if it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if size < 1 or (found and not found[2] and size < MOST_LIKELY_MEANT):
        raise InputError(f"size of a shard: expected one such as 5GB or 800MiB, got {text!r}")
    return size


def in_bytes(size: int) -> str:
    """Return a size for people, with a decimal unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def shards(entries: Sequence[Entry], max_bytes: int) -> list[tuple[str, list[Entry]]]:
    """Return file names and what goes into each, in order; a tensor larger than `max_bytes` has a file of its own."""
    parts: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if parts[-1] and size + entry.nbytes > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.nbytes
    if len(parts) == 1:
        return [(WEIGHTS, parts[0])]
    stem, suffix = WEIGHTS.split(".")
    return [(f"{stem}-{i:05d}-of-{len(parts):05d}.{suffix}", part) for i, part in enumerate(parts, start=1)]


def header(entries: Sequence[Entry]) -> bytes:
    """Return what a file of these tensors begins with."""
    facts: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        facts[entry.name] = {"dtype": stored_name(entry.dtype), "shape": entry.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shards(
    folder: Path, entries: Sequence[Entry], content: Callable[[Entry], Iterable[memoryview]], max_bytes: int
) -> None:
    """Write tensors into a folder, with an index if they take more than one file.

    Args:
        folder: to write into.
        entries: the tensors, in the order they are written and asked for.
        content: entry -> its bytes, in pieces.
        max_bytes: size that the tensors of a file may have together.
    """
    parts = shards(entries, max_bytes)
    for name, part in parts:
        with (folder / name).open("wb") as file:
            file.write(header(part))
            for entry in part:
                written = sum(file.write(piece) for piece in content(entry))
                assert written == entry.nbytes, (entry, written)
    if len(parts) > 1:
        facts = {"total_parameters": sum(e.numel for e in entries), "total_size": sum(e.nbytes for e in entries)}
        places = {entry.name: name for name, part in parts for entry in part}
        index = {"metadata": facts, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
