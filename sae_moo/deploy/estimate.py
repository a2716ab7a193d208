"""What each format would take, and which runtimes gain by it, measured without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from sae_moo.deploy.mergekit.writer import write
from sae_moo.deploy.packing import encoded
from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.errors import InputError
from sae_moo.recipe import BASE, dumps, encode


@dataclass(frozen=True, slots=True)
class Estimate:
    """One format.

    Args:
        format: as `export` calls it.
        nbytes: of the weights in it; None where it does not apply.
        share: of the dense weights' size; None likewise.
        gains: who gains what, or why it does not apply.
    """

    format: str
    nbytes: int | None
    share: float | None
    gains: str


def estimates(stream: Stream) -> list[Estimate]:
    """Return an estimate of every format; sizes are exact for the weights, tokenizer and card come on top.

    Costs the arithmetic and the compression of an export, and a pass more for what could be dropped.
    """
    base = stream.pool.checkpoints[BASE]
    packed = delta = 0
    for entry in stream.entries:
        tensor = stream.tensor(entry.name)
        stream.hashed(tensor, entry.name)
        packed += sum(len(frame) for chunk in encoded(tensor) for frame in chunk)
        reference = base.load(entry.name).to(entry.dtype)
        delta += sum(len(frame) for chunk in encoded(tensor, reference) for frame in chunk)
    dense = sum(entry.nbytes for entry in stream.entries)
    fits, matrices = sum(stream.two_four.values()), len(stream.two_four)
    speed = "none: the zeros stay where they are, and no runtime is faster for scattered ones"
    if not stream.sparsity():
        speed = "none: there are no zeros"
    elif fits:
        speed = (
            f"{fits} of {matrices} prunable matrices are 2:4: faster on NVIDIA GPUs from Ampere on once converted by "
            "torch.sparse.to_sparse_semi_structured; all else: none"
        )
    recipe = len(dumps(encode(stream.recipe)).encode()) + sum(len(n) + 68 for n in stream.digests)
    rows = [
        ("hf", dense, speed),
        ("packed", packed, "download and disk; the unpacked folder is hf: none"),
        ("delta", delta, "download and disk, for who has the base; the unpacked folder is hf: none"),
        ("recipe", recipe, "download, for who has base and experts; the merged folder is hf: none"),
    ]
    found = [Estimate(name, size, size / dense, gains) for name, size, gains in rows]
    found.append(_mergekit(stream, dense))
    try:
        small = Shrunk(stream)
    except InputError as error:
        return [*found, Estimate("structured", None, None, " ".join(str(error).split()))]
    size = sum(entry.nbytes for entry in small.entries)
    return [*found, Estimate("structured", size, size / dense, "all: memory and speed, matrices are smaller")]


def _mergekit(stream: Stream, dense: int) -> Estimate:
    try:
        text, notes = write(stream.recipe, stream.pool)
    except InputError as error:
        return Estimate("mergekit", None, None, str(error))
    size = len(text.encode())
    gains = "download, for who has mergekit, base and experts; the merged folder is hf: none"
    return Estimate("mergekit", size, size / dense, "; ".join((gains, *notes)))
