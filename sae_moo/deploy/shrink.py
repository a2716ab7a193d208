"""Dropping what is zero as a whole: blocks, neurons, groups of attention heads, experts of mixtures: a smaller model.

Judged by the weights themselves, however they came to be zero: a block whose products are all zero is the identity, a
unit all of whose rows, columns and biases are zero adds nothing to what the model computes. Where a configuration names
one size for all blocks, as many units go from each as the block with the fewest has; what is left over stays as zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae_moo.deploy.mixtures import FewerExperts, as_expert, fewer_experts
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config
from sae_moo.deploy.tensor_files import Entry, in_bytes
from sae_moo.deploy.vacancies import Vacancies
from sae_moo.errors import InputError, itemized
from sae_moo.experts.anatomy import Anatomy, anatomy
from sae_moo.experts.layers import Relaid
from sae_moo.experts.layout import content_digest, raw, text_config
from sae_moo.experts.live import parsed_config
from sae_moo.experts.widths import NAMES_HEAD_SIZE, is_read, one_for_each, settings
from sae_moo.recipe import BASE

UNITS = {"neurons": "neurons", "heads": "key/value groups of heads"}
"""Scope -> what its units are called; those that blocks can lose, in the order in which they are looked for."""
_WITHOUT_ATTENTION = "linear_attention"


@dataclass(frozen=True, slots=True)
class Cut:
    """What is dropped of a scope's units; rows of numbers are of the blocks that are left.

    Args:
        units: how many each block had.
        zero: how many are zero as a whole in each block; of a block where all are, one counts as if it were not.
        dropped: how many of these are dropped from each block.
        weights: how many weights a unit has in each block.
        nbytes: their size in bytes.
    """

    units: int
    zero: tuple[int, ...]
    dropped: tuple[int, ...]
    weights: tuple[int, ...]
    nbytes: tuple[int, ...]

    @property
    def even(self) -> tuple[int, ...]:
        """How many are dropped where one width stands for all blocks: everywhere as many as the fewest, at most."""
        return (min(self.zero if len(set(self.dropped)) > 1 else self.dropped),) * len(self.zero)

    @property
    def inside(self) -> int:
        """How many units that are zero stay."""
        return sum(self.zero) - sum(self.dropped)


class Shrunk:
    """The weights of a stream without the blocks and units that are zero in it.

    Costs a pass over the matrices that hold units, to find them, beside the one that writes.

    Args:
        stream: the whole weights.

    Attributes:
        stream: the whole weights; their digests and zeros are counted as they pass.
        entries: the tensors that are left, smaller, in the stream's order, those of later blocks renumbered.
        config: what changes in ``config.json``.
        blocks: how many blocks there were.
        gone: numbers of the blocks that are dropped, ascending.
        cuts: scope -> what of its units is zero, and what of that is dropped.
        fewer: what is dropped of mixtures of experts; None: nothing.
        digests: name -> SHA-256 of the smaller tensor's bytes, of those that have passed.

    Raises:
        InputError: if there is nothing to drop, saying why, or nothing would be left.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.digests: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.gone: tuple[int, ...] = ()
        self.cuts: dict[str, Cut] = {}
        self.fewer: FewerExperts | None = None
        self._names = {entry.name: entry.name for entry in stream.entries}  # the stream's -> what it is called now
        self._indices: dict[str, tuple[int, Tensor]] = {}  # the stream's name -> axis, and what is left along it
        vacancies = Vacancies(stream)
        self.blocks = vacancies.blocks
        reasons = []
        try:
            idle = vacancies.idle()
            if not idle:
                raise InputError(f"none of {self.blocks} is zero as a whole")
        except InputError as error:
            reasons.append(f"blocks: {error}")
        else:
            self._drop_blocks(idle)
        for scope in UNITS:
            try:
                self._drop_units(scope, vacancies)
            except InputError as error:
                reasons.append(f"{scope}: {error}")
        try:
            self._drop_experts()
        except InputError as error:
            reasons.append(f"moe-experts: {error}")
        if not self.gone and self.fewer is None and not any(sum(cut.dropped) for cut in self.cuts.values()):
            title = (
                "format structured: nothing can be dropped, neither a block nor units of every block; prune blocks, "
                "neurons, heads or experts"
            )
            raise InputError(itemized(title, reasons))
        self.entries = self._entries()
        self._owners = {new: old for old, new in self._names.items()}
        self._unseen = [entry.name for entry in stream.entries if entry.name not in self._names]

    @property
    def narrower(self) -> bool:
        """Whether units are dropped, so that sums are shorter and may round otherwise."""
        return bool(self._indices)

    def nbytes(self, *, even: bool) -> int:
        """Return the size of all tensors.

        Args:
            even: if one width stands for all blocks, else if each has its own.
        """
        saved = 0
        for cut in self.cuts.values():
            wanted = cut.even if even else cut.zero
            more = zip(cut.nbytes, cut.dropped, wanted, strict=True)
            saved += sum(size * (then - now) for size, now, then in more)
        return sum(entry.nbytes for entry in self.entries) - saved

    @property
    def dropped(self) -> str:
        """What is dropped, for people."""
        said = []
        for scope, cut in self.cuts.items():
            if any(cut.dropped):
                fewest, most = min(cut.dropped), max(cut.dropped)
                said.append(f"{fewest if fewest == most else f'{fewest} to {most}'} of {cut.units} {UNITS[scope]}")
        blocks = [f"{len(self.gone)} of {self.blocks} blocks"] if self.gone else []
        units = [f"{' and '.join(said)} of every {'other ' if self.gone else ''}block"] if said else []
        experts = [] if self.fewer is None else [f"{self.fewer.gone} of {self.fewer.experts} experts of every mixture"]
        return ", ".join(blocks + units + experts)

    def left(self) -> tuple[str, ...]:
        """Return what to know of what is left, a sentence each.

        That is units that are zero and stay, blocks that differ in width, and runtimes that take blocks for others.
        """
        said = list(self._counted_off())
        padded = {scope: cut for scope, cut in self.cuts.items() if cut.inside}
        if padded:
            weights = sum(
                size * (zero - gone)
                for cut in padded.values()
                for size, zero, gone in zip(cut.weights, cut.zero, cut.dropped, strict=True)
            )
            units = " and ".join(f"{cut.inside} {UNITS[scope]}" for scope, cut in padded.items())
            share = weights / sum(entry.numel for entry in self.entries)
            said.append(
                f"{units} that are zero stay, as zeros: {weights} weights, {share:.1%} of all that are written. "
                "Transformers reads one width for all blocks of this architecture, so every block is as wide as the "
                f"widest, {in_bytes(self.nbytes(even=True))} in all; if each had its own width it would be "
                f"{in_bytes(self.nbytes(even=False))}"
            )
        refused = [UNITS[scope] for scope, cut in padded.items() if cut.dropped[0] < min(cut.zero)]
        if refused:
            said.append(
                f"more {' and '.join(refused)} are zero in every block, but transformers refuses the config.json that "
                "says so few: the hidden size has to be a multiple of the number of heads"
            )
        own = [UNITS[scope] for scope, cut in self.cuts.items() if len(set(cut.dropped)) > 1]
        if own:
            said.append(
                f"every block has its own number of {' and of '.join(own)}, as transformers reads it from config.json: "
                f"{in_bytes(self.nbytes(even=False))}; other runtimes may want blocks of one width, which would be "
                f"{in_bytes(self.nbytes(even=True))}"
            )
        return tuple(said)

    def _counted_off(self) -> Iterator[str]:
        """Yield what a runtime gets wrong that goes by the numbers of blocks instead of by ``config.json``."""
        if not self.gone:
            return
        base = self.stream.pool.checkpoints[BASE]
        whole, own = (dict(text_config(each)) for each in (parsed_config(base.folder) or {}, base.config))
        kinds = (whole | own).get("layer_types") or ()
        left = text_config(self.config).get("layer_types", kinds)
        if list(left) != list(kinds[: len(left)]):
            yield (
                f"blocks are of several kinds ({', '.join(sorted(set(kinds)))}), each as config.json lists it, which "
                "transformers and vLLM read; llama.cpp counts the kinds of some architectures off instead (Gemma2 and "
                "Gemma3 among them), and computes another model of this one"
            )
        scale = (whole | own).get("query_pre_attn_scalar")
        if scale is not None and scale != (whole | own).get("head_dim"):
            yield (
                "llama.cpp takes the scale of this model's attention by the number of blocks, and computes another "
                "model of this one"
            )

    def content(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the bytes of one smaller tensor, as `tensor_files.write_shards` asks for them.

        What blocks that are dropped held passes with the first.
        """
        while self._unseen:
            name = self._unseen.pop()
            self.stream.hashed(self.stream.tensor(name), name)
        own = self._owners[entry.name]
        tensor = self.stream.tensor(own)
        self.stream.hashed(tensor, own)
        if own in self._indices:
            axis, indices = self._indices[own]
            tensor = tensor.index_select(axis, indices)
        self.digests[entry.name] = content_digest(tensor)
        yield raw(tensor)

    def _drop_blocks(self, idle: tuple[int, ...]) -> None:
        """Leave blocks out, and number the others anew."""
        base = self.stream.pool.checkpoints[BASE]
        rest = [block for block in range(self.blocks) if block not in idle]
        if not rest:
            raise InputError(f"format structured: all {self.blocks} blocks are zero, and without them no model is left")
        relaid = Relaid(base, rest)
        kinds, before = (set(text_config(each.config).get("layer_types") or ()) for each in (relaid, base))
        if kinds == {_WITHOUT_ATTENTION} != before:
            raise InputError(f"format structured: of the blocks that are left none has attention; {idle} are zero")
        now = {own: name for name, own in relaid.names.items() if own is not None}
        self._names = {name: now[name] for name in self._names if name in now}
        self.config |= {key: value for key, value in relaid.config.items() if base.config.get(key) != value}
        self.gone = idle

    def _drop_experts(self) -> None:
        """Leave experts out of mixtures, and number the others anew."""
        fewer = fewer_experts(self.stream, self.gone)
        before = self._names, self._indices
        moved = {name: fewer.numbers.get(name) for name in self._names}
        self._names = {
            name: now if (expert := moved[name]) is None else as_expert(now, expert)
            for name, now in self._names.items()
            if name not in fewer.numbers or moved[name] is not None
        }
        self._indices = {**self._indices, **fewer.kept}
        if not self._is_read(fewer.config):
            self._names, self._indices = before
            raise InputError(f"transformers does not read {fewer.config} as the number of experts")
        self.config |= fewer.config
        self.fewer = fewer

    def _drop_units(self, scope: str, vacancies: Vacancies) -> None:
        """Leave units out of the blocks that are left: all that are zero, or as many as ``config.json`` can say."""
        whole = self._anatomy(scope)
        zero = vacancies.units(whole)
        left = [block for block in range(whole.blocks) if block not in self.gone]
        counts = tuple(min(int(zero[block].sum()), whole.units - 1) for block in left)
        if not any(counts):
            raise InputError(f"of {whole.units} in each block none is zero")
        cut = Cut(whole.units, counts, counts, *self._sizes(whole, left))
        before = self._indices
        for dropped in dict.fromkeys((counts, *((count,) * len(left) for count in range(min(counts), 0, -1)))):
            self._indices = before | _indices(whole, zero, dict(zip(left, dropped, strict=True)))
            if self._say(scope, whole, dropped):
                self.cuts[scope] = replace(cut, dropped=dropped)
                return
        self._indices = before
        self.cuts[scope] = replace(cut, dropped=(0,) * len(left))
        told = ", ".join(map(str, counts))
        raise InputError(
            f"of {whole.units} in each block as many are zero as: {told}; transformers reads one width for all blocks "
            "of this architecture, and none that is smaller"
        )

    def _anatomy(self, scope: str) -> Anatomy:
        pool = self.stream.pool
        kind = pool.checkpoints[BASE].config.get("model_type")
        if scope == "heads" and kind not in NAMES_HEAD_SIZE:
            raise InputError(f"config.json of {kind!r} cannot say that there are fewer heads of the same size")
        return anatomy(pool, scope)

    def _sizes(self, whole: Anatomy, left: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return how many weights, and bytes, a unit has in each block that is left."""
        itemsize = {entry.name: entry.dtype.itemsize for entry in self.stream.entries}
        weights, nbytes = [0] * whole.blocks, [0] * whole.blocks
        for part in whole.parts:
            own = sum(width for _, width in part.sections) * part.info.numel // part.info.shape[part.axis]
            weights[part.block] += own
            nbytes[part.block] += own * itemsize[part.info.name]
        return tuple(weights[block] for block in left), tuple(nbytes[block] for block in left)

    def _say(self, scope: str, whole: Anatomy, dropped: tuple[int, ...]) -> bool:
        """Say in ``config.json`` how many units go from every block, if transformers reads it; return whether."""
        blocks = [self._said(scope, whole, whole.units - count) for count in dropped]
        alike = len(set(dropped)) == 1
        config = deployed_config(self.stream.pool, self.stream.dtype, self.config)
        for changes in [blocks[0]] if alike else one_for_each(config, blocks):
            if self._is_read(changes):
                self.config |= changes
                return True
        return False

    def _is_read(self, changes: Mapping[str, Any]) -> bool:
        """Say whether transformers reads a further changed ``config.json`` as that of the tensors that are left."""
        config = deployed_config(self.stream.pool, self.stream.dtype, self.config)
        return is_read({**config, **changes}, self._entries())

    def _said(self, scope: str, whole: Anatomy, left: int) -> dict[str, int]:
        reader = next(part for part in whole.parts if part.output)
        config = self.stream.pool.checkpoints[BASE].config
        return settings(config, scope, left, whole.units, reader.info.shape[reader.axis])

    def _entries(self) -> tuple[Entry, ...]:
        """Return the tensors that are left, as far as is known."""
        found = []
        for entry in self.stream.entries:
            if entry.name not in self._names:
                continue
            shape = list(entry.shape)
            if entry.name in self._indices:
                axis, indices = self._indices[entry.name]
                shape[axis] = len(indices)
            found.append(replace(entry, name=self._names[entry.name], shape=tuple(shape)))
        return tuple(found)


def _indices(whole: Anatomy, zero: Tensor, counts: dict[int, int]) -> dict[str, tuple[int, Tensor]]:
    """Return what is left of each tensor that holds units if so many go of its block's, the first that are zero."""
    found = {}
    for part in whole.parts:
        if count := counts.get(part.block, 0):
            kept = torch.ones(whole.units, dtype=torch.bool)
            kept[zero[part.block].nonzero().flatten()[:count]] = False
            found[part.info.name] = (part.axis, part.indices(kept.nonzero().flatten()).sort().values)
    return found
