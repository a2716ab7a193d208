"""Packed models: one file, smaller than dense weights by about as much as they are sparse; bit for bit the same back.

Layout, numbers little-endian::

    "SAEPACK1"
    frames of the tensors, then of the files, each compressed by zstd
    the index: JSON, compressed by zstd
    offset and size of the index (8 bytes each), its SHA-256 (32 bytes), "SAEPACK1"

The index holds ``version``; ``base``, null or the base's ``source`` and ``fingerprint``; ``shard_bytes``; ``tensors``,
in the order of the folder's files, each with ``name``, ``dtype``, ``shape``, ``sha256`` of its bytes, ``sha256_packed``
of its frames, ``offset`` of the first one, and ``chunks``: the sizes of the frames of every `CHUNK` elements, which
follow each other; and ``files``, each with ``name``, ``offset``, ``size`` and ``sha256_packed``.

The frames of a chunk of a whole model: a bit for every element that is not all zero bits, in order, eight to a byte,
the first one highest; then the elements so marked, rotated left by one bit (the exponent fills a byte, the sign joins
the mantissa), a frame for each byte of theirs, the lowest first.

Those of a delta: a bit for every element that differs from the base's, rounded to the result's dtype; a bit for each of
these that is all zero bits; then, for the others, the difference of both bit patterns as integers, modulo 2 to the
number of bits, folded to small numbers (0, -1, 1, -2, ... to 0, 1, 2, 3, ...), a frame for each byte.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.deploy.tensor_files import SHARD_BYTES, Entry, write_shards
from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.code import is_inside
from sae_moo.experts.layout import KEPT_DTYPES, STORED_DTYPES, stored_name
from sae_moo.files.whole import check_free, whole_folder

MAGIC = b"SAEPACK1"
CHUNK = 1 << 20
_FOOTER = 16 + 32 + len(MAGIC)
_UINTS: Mapping[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FAULTS = (zstandard.ZstdError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError)


class Packer:
    """Writes a packed model: tensors one by one, then the files beside them.

    Args:
        path: of the file, replaced if it is there.
        shard_bytes: size that the tensors of one file of the unpacked folder may have together.
        base: for a delta, the base's ``source`` and ``fingerprint``.

    Attributes:
        size: bytes of what was compressed of tensors so far.
    """

    def __init__(self, path: Path, shard_bytes: int = SHARD_BYTES, base: Mapping[str, str] | None = None) -> None:
        self.size = 0
        self._file = path.open("w+b")
        self._file.write(MAGIC)
        self._tensors: list[dict[str, Any]] = []
        self._head = {"version": 1, "base": base, "shard_bytes": shard_bytes}

    def __enter__(self) -> Packer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: Entry, tensor: Tensor, sha256: str, reference: Tensor | None = None) -> None:
        """Write one tensor.

        Args:
            entry: name, shape and dtype.
            tensor: contiguous, on the CPU.
            sha256: digest of its bytes.
            reference: the base's tensor in the same dtype, for a delta.
        """
        offset, chunks, packed = len(MAGIC) + self.size, [], hashlib.sha256()
        for frames in encoded(tensor, reference):
            chunks.append([self._file.write(frame) for frame in frames])
            self.size += sum(chunks[-1])
            packed.update(b"".join(frames))
        dtype = stored_name(entry.dtype)
        facts = {"name": entry.name, "dtype": dtype, "shape": entry.shape, "sha256": sha256}
        self._tensors.append(facts | {"sha256_packed": packed.hexdigest(), "offset": offset, "chunks": chunks})

    def seal(self, files: Mapping[str, bytes]) -> None:
        """Write the files beside the tensors, and the index; once more replaces those of the time before."""
        self._file.seek(len(MAGIC) + self.size)
        self._file.truncate()
        written = []
        for name, content in files.items():
            offset = self._file.tell()
            frame = _compressed(content)
            size = self._file.write(frame)
            written.append({"name": name, "offset": offset, "size": size, "sha256_packed": _sha256(frame)})
        index = _compressed(json.dumps(self._head | {"tensors": self._tensors, "files": written}).encode())
        start = self._file.tell()
        self._file.write(index)
        self._file.write(start.to_bytes(8, "little") + len(index).to_bytes(8, "little"))
        self._file.write(hashlib.sha256(index).digest() + MAGIC)
        self._file.flush()


def encoded(tensor: Tensor, reference: Tensor | None = None) -> Iterator[list[bytes]]:
    """Yield the frames of every chunk of a tensor, as the module describes them.

    Args:
        tensor: contiguous, on the CPU; elements of 1, 2, 4 or 8 bytes.
        reference: what the result is a delta over: the same shape and dtype; None packs the whole.
    """
    bits = _bits(tensor)
    before = None if reference is None else _bits(reference.contiguous())
    for start in range(0, len(bits), CHUNK):
        now = bits[start : start + CHUNK]
        if before is None:
            marked = now != 0
            values = now[marked]
            parts: list[Any] = [np.packbits(marked)]
            values = (values << 1) | (values >> (8 * values.itemsize - 1))
        else:
            old = before[start : start + CHUNK]
            marked = now != old
            values, old = now[marked], old[marked]
            empty = values == 0
            parts = [np.packbits(marked), np.packbits(empty)]
            values = _folded(values[~empty] - old[~empty])
        planes = values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, values.itemsize)
        parts += [np.ascontiguousarray(planes[:, i]) for i in range(values.itemsize)]
        yield [_compressed(part) for part in parts]


def unpack(file: Path, output: Path, base: str | None = None) -> int:
    """Make the folder that was packed, bit for bit.

    Args:
        file: the packed model.
        output: the folder to make.
        base: where the base of a delta is: a folder, a hub id or ``zoo:NAME``.

    Returns:
        The number of tensors; the digest of each was compared.

    Raises:
        InputError: if the file is none, torn or edited, or the base is not given or another; nothing is written then.
    """
    check_free(output)
    try:
        opened = file.open("rb")
    except OSError as error:
        raise InputError(f"{file}: expected the file of a packed model: {error.strerror}") from error
    with opened as handle:
        index = _index(file, handle)
        try:
            known = _base(file, index["base"], base)
            facts = {each["name"]: each for each in index["tensors"]}
            entries = [
                Entry(str(name), tuple(map(int, each["shape"])), (STORED_DTYPES | KEPT_DTYPES)[each["dtype"]])
                for name, each in facts.items()
            ]
            with whole_folder(output) as partial:

                def content(entry: Entry) -> Iterator[memoryview]:
                    reference = None if known is None else known.load(entry.name).to(entry.dtype).contiguous()
                    return _decoded(file, handle, facts[entry.name], entry, reference)

                write_shards(partial, entries, content, int(index["shard_bytes"]))
                for each in index["files"]:
                    name = str(each["name"])
                    place = partial / name
                    if not is_inside(name) or place.exists() or any(each.is_file() for each in place.parents):
                        raise InputError(f"{file}: holds a file named {name!r}; nothing was written")
                    data = _read(handle, each["offset"], each["size"])
                    if _sha256(data) != each["sha256_packed"]:
                        raise InputError(f"{file}: torn or edited: {name} has another digest; nothing was written")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(zstandard.ZstdDecompressor().decompress(data))
        except _FAULTS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file}: torn or edited: {error!r}; nothing was written") from error
    return len(entries)


def _index(file: Path, handle: BinaryIO) -> dict[str, Any]:
    size = handle.seek(0, 2)
    handle.seek(0)
    if handle.read(len(MAGIC)) != MAGIC:
        raise InputError(f"{file}: expected a packed model, which begins with {MAGIC.decode()}")
    footer = _read(handle, max(size - _FOOTER, 0), _FOOTER)
    start, length = int.from_bytes(footer[:8], "little"), int.from_bytes(footer[8:16], "little")
    whole = footer.endswith(MAGIC) and start + length + _FOOTER == size
    index = _read(handle, start, length) if whole else b""
    if not whole or hashlib.sha256(index).digest() != footer[16:48]:
        raise InputError(f"{file}: torn or edited: its index, at the end, is not whole; nothing was written")
    try:
        document = json.loads(zstandard.ZstdDecompressor().decompress(index))
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: torn or edited: {error}; nothing was written") from error
    if not isinstance(document, dict) or document.get("version") != 1:
        raise InputError(f"{file}: expected version 1 of a packed model; nothing was written")
    return document


def _base(file: Path, named: Mapping[str, str] | None, given: str | None) -> Checkpoint | None:
    if named is None:
        if given is not None:
            raise InputError(f"{file}: holds a whole model; a base is for those written as a delta")
        return None
    if given is None:
        raise InputError(f"{file}: holds a delta over {named['source']}; expected base: where that is now")
    base = Checkpoint(given)
    if base.fingerprint != named["fingerprint"]:
        raise InputError(
            f"{file}: expected the base with fingerprint {named['fingerprint']} ({named['source']}), "
            f"got {given} with {base.fingerprint}"
        )
    return base


def _decoded(
    file: Path, handle: BinaryIO, facts: Mapping[str, Any], entry: Entry, reference: Tensor | None
) -> Iterator[memoryview]:
    """Yield the bytes of one tensor, a chunk at a time.

    Raises:
        InputError: at the end, if they are not those that were packed.
    """
    before = None if reference is None else _bits(reference)
    width = entry.dtype.itemsize
    offset, digest, packed = int(facts["offset"]), hashlib.sha256(), hashlib.sha256()
    if len(facts["chunks"]) != math.ceil(entry.numel / CHUNK):
        raise ValueError(f"{entry.name} has {len(facts['chunks'])} chunks")
    for number, sizes in enumerate(facts["chunks"]):
        start = number * CHUNK
        count = min(CHUNK, entry.numel - start)
        frames = []
        for size in sizes:
            frames.append(_read(handle, offset, size))
            packed.update(frames[-1])
            offset += size
        old = None if before is None else before[start : start + count]
        values = _chunk(frames, count, width, old)
        piece = values.view(np.uint8).data
        digest.update(piece)
        yield piece
    if (digest.hexdigest(), packed.hexdigest()) != (facts["sha256"], facts["sha256_packed"]):
        raise InputError(f"{file}: torn or edited: {entry.name} has another digest; nothing was written")


def _chunk(frames: Sequence[bytes], count: int, width: int, old: NDArray[Any] | None) -> NDArray[Any]:
    flags = 1 if old is None else 2
    if len(frames) != flags + width:
        raise ValueError(f"a chunk of {len(frames)} frames where {flags + width} were expected")
    marked = _flags(frames[0], count)
    kind = _UINTS[width]
    if old is None:
        values = _planes(frames[1:], int(marked.sum()))
        now = np.zeros(count, kind)
        now[marked] = (values >> 1) | (values << (8 * width - 1))
        return now
    now = old.copy()
    empty = _flags(frames[1], int(marked.sum()))
    new = np.zeros(len(empty), kind)
    new[~empty] = old[marked][~empty] + _unfolded(_planes(frames[2:], int((~empty).sum())))
    now[marked] = new
    return now


def _planes(frames: Sequence[bytes], count: int) -> NDArray[Any]:
    width = len(frames)
    planes = np.empty((count, width), np.uint8)
    for i, frame in enumerate(frames):
        planes[:, i] = np.frombuffer(_plain(frame, count), np.uint8)
    values: NDArray[Any] = planes.view(np.dtype(_UINTS[width]).newbyteorder("<")).reshape(-1)
    return values.astype(_UINTS[width], copy=False)


def _flags(frame: bytes, count: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(_plain(frame, (count + 7) // 8), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def _folded(difference: NDArray[Any]) -> NDArray[Any]:
    sign = difference >> (8 * difference.itemsize - 1)
    folded: NDArray[Any] = (difference << 1) ^ (0 - sign).astype(difference.dtype)
    return folded


def _unfolded(folded: NDArray[Any]) -> NDArray[Any]:
    difference: NDArray[Any] = (folded >> 1) ^ (0 - (folded & 1)).astype(folded.dtype)
    return difference


def _bits(tensor: Tensor) -> NDArray[Any]:
    """Return the elements of a contiguous tensor as unsigned integers of the same width, flat, without a copy."""
    flat = tensor.reshape(-1).view(_INTS[tensor.dtype.itemsize])
    bits: NDArray[Any] = flat.numpy().view(_UINTS[tensor.dtype.itemsize])
    return bits


def _compressed(content: Any) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(content)


def _plain(frame: bytes, size: int) -> bytes:
    if zstandard.frame_content_size(frame) != size:
        raise ValueError(f"a frame of {zstandard.frame_content_size(frame)} bytes where {size} were expected")
    return zstandard.ZstdDecompressor().decompress(frame)


def _read(handle: BinaryIO, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
