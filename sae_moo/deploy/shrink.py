"""Dropping what is zero as a whole: neurons of MLPs and groups of attention heads, so that matrices become smaller.

Judged by the weights themselves, however they came to be zero: a unit all of whose rows, columns and biases are zero
adds nothing to what the model computes. A configuration names one size for all blocks, so as many units go from each as
the block with the fewest has; what is left over stays as zeros.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_moo.deploy.stream import Stream
from sae_moo.deploy.tensor_files import Entry
from sae_moo.errors import InputError, itemized
from sae_moo.experts.anatomy import Anatomy, Part, anatomy
from sae_moo.experts.layout import content_digest, raw
from sae_moo.experts.live import load_model
from sae_moo.recipe import BASE, STRUCTURED

NAMES_HEAD_SIZE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""Model types whose ``config.json`` can hold fewer heads of the same size (``head_dim``)."""


class Shrunk:
    """The weights of a stream without the units that are zero in it.

    Costs one pass over the matrices that hold units, to find them, beside the one that writes.

    Args:
        stream: the whole weights.

    Attributes:
        stream: the whole weights; their digests and zeros are counted as they pass.
        entries: the smaller tensors, in the stream's order.
        config: what changes in ``config.json``.
        removed: scope -> number of units dropped from each block, and how many there were.
        digests: name -> SHA-256 of the smaller tensor's bytes, of those that have passed.

    Raises:
        InputError: if there is nothing to drop, saying why.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.digests: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.removed: dict[str, tuple[int, int]] = {}
        self._kept: dict[str, tuple[int, Tensor]] = {}
        reasons = []
        for scope in STRUCTURED:
            try:
                whole = self._anatomy(scope)
                dead = _dead(stream, whole)
                fewest = min(int(dead.sum(dim=1).min()), whole.units - 1)
                if not fewest:
                    counts = ", ".join(map(str, dead.sum(dim=1).tolist()))
                    raise InputError(f"of {whole.units} in each block as many are zero as: {counts}")
            except InputError as error:
                reasons.append(f"{scope}: {error}")
                continue
            self._drop(scope, whole, dead, fewest)
        if not self.removed:
            title = "format structured: nothing can be dropped from every block; prune with the scope neurons or heads"
            raise InputError(itemized(title, reasons))
        self.entries = tuple(self._smaller(entry) for entry in stream.entries)

    def content(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the bytes of one smaller tensor, as `tensor_files.write_shards` asks for them."""
        tensor = self.stream.tensor(entry.name)
        self.stream.hashed(tensor, entry.name)
        if entry.name in self._kept:
            axis, indices = self._kept[entry.name]
            tensor = tensor.index_select(axis, indices)
        self.digests[entry.name] = content_digest(tensor)
        yield raw(tensor)

    def _anatomy(self, scope: str) -> Anatomy:
        pool = self.stream.pool
        kind = pool.checkpoints[BASE].config.get("model_type")
        if scope == "heads" and kind not in NAMES_HEAD_SIZE:
            raise InputError(f"config.json of {kind!r} cannot say that there are fewer heads of the same size")
        return anatomy(pool, scope)

    def _drop(self, scope: str, whole: Anatomy, dead: Tensor, count: int) -> None:
        left = whole.units - count
        config = self.stream.pool.checkpoints[BASE].config
        for part in whole.parts:
            gone = dead[part.block].nonzero().flatten()[:count]
            kept = torch.ones(whole.units, dtype=torch.bool)
            kept[gone] = False
            self._kept[part.info.name] = (part.axis, part.indices(kept.nonzero().flatten()).sort().values)
        self.removed[scope] = (count, whole.units)
        if scope == "neurons":
            self.config["n_inner" if config.get("model_type") == "gpt2" else "intermediate_size"] = left
            return
        heads = int(config["num_attention_heads"])
        reader = next(part for part in whole.parts if part.output)
        self.config |= {
            "num_attention_heads": left * (heads // whole.units),
            "num_key_value_heads": left,
            "head_dim": reader.info.shape[reader.axis] // heads,
        }

    def _smaller(self, entry: Entry) -> Entry:
        if entry.name not in self._kept:
            return entry
        axis, indices = self._kept[entry.name]
        return replace(entry, shape=(*entry.shape[:axis], len(indices), *entry.shape[axis + 1 :]))


def _dead(stream: Stream, whole: Anatomy) -> Tensor:
    """Return whether all that a unit holds is zero; shape (blocks, units)."""
    alive = torch.zeros(whole.blocks, whole.units)
    for part in whole.parts:
        alive[part.block] += part.per_unit(_nonzero(stream.tensor(part.info.name), part), whole.units)
    return alive == 0


def _nonzero(tensor: Tensor, part: Part) -> Tensor:
    """Return 1 for every index along the part's axis that holds a number other than zero, else 0; float32."""
    rest = [axis for axis in range(tensor.ndim) if axis != part.axis]
    found = tensor != 0
    return (found.any(dim=rest[0]) if rest else found).float()


def speed_up(folder: Path, dense: Path, dtype: torch.dtype, device: str, rounds: int = 25) -> float:
    """Return how many times as fast as a dense model another is: forward passes over 4 rows of 64 tokens.

    Both models are in memory and take turns, and the fastest pass of each counts: what else the machine does then
    disturbs neither.
    """
    models = [load_model(each, dtype, device) for each in (dense, folder)]
    tokens = torch.arange(256, device=device).reshape(4, 64) % int(models[0].config.vocab_size)
    best = [math.inf, math.inf]
    with torch.inference_mode():
        for _ in range(rounds):
            for i, model in enumerate(models):
                start = time.perf_counter()
                float(model(input_ids=tokens, use_cache=False).logits.flatten()[0])  # waits for a GPU too
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]
