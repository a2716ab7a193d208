"""What a block is made of: which way its matrices lie, what of them belongs to one neuron or group of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_moo.errors import InputError
from sae_moo.experts.blocks import by_block
from sae_moo.experts.layout import stored_turned, text_config
from sae_moo.experts.mixtures import mixture
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.recipe import BASE, BLOCKS, MOE_EXPERTS, STRUCTURED

# One module of an MLP or an attention: its name in the block, the side on which units lie, and what each unit takes
# there, stacked: "n" one row (a neuron), "q" the query rows of a group of heads, "k" and "v" its key and value rows,
# "qkv" all of them side by side.
_Module = tuple[str, str, tuple[str, ...]]
_GATED: tuple[_Module, ...] = (
    ("mlp.gate_proj", "out", ("n",)),
    ("mlp.up_proj", "out", ("n",)),
    ("mlp.down_proj", "in", ("n",)),
)
_SEPARATE: tuple[_Module, ...] = (
    ("self_attn.q_proj", "out", ("q",)),
    ("self_attn.k_proj", "out", ("k",)),
    ("self_attn.v_proj", "out", ("v",)),
    ("self_attn.o_proj", "in", ("q",)),
)
_LLAMA = {"neurons": _GATED, "heads": _SEPARATE}
_LAYOUTS: Mapping[str, Mapping[str, tuple[_Module, ...]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    "olmo2": {"neurons": _GATED},  # its query norm runs over all heads: removing one would change the others
    "phi3": {
        "neurons": (("mlp.gate_up_proj", "out", ("n", "n")), ("mlp.down_proj", "in", ("n",))),
        "heads": (("self_attn.qkv_proj", "out", ("q", "k", "v")), ("self_attn.o_proj", "in", ("q",))),
    },
    "gpt2": {
        "neurons": (("mlp.c_fc", "out", ("n",)), ("mlp.c_proj", "in", ("n",))),
        "heads": (("attn.c_attn", "out", ("q", "k", "v")), ("attn.c_proj", "in", ("q",))),
    },
    "gpt_neox": {
        "neurons": (("mlp.dense_h_to_4h", "out", ("n",)), ("mlp.dense_4h_to_h", "in", ("n",))),
        "heads": (("attention.query_key_value", "out", ("qkv",)), ("attention.dense", "in", ("q",))),
    },
}
RESIDUAL = frozenset(
    (
        "afmoe", "apertus", "arcee", "aria_text", "bitnet", "bloom", "cohere", "cohere2", "cohere2_moe", "cwm",
        "ernie4_5", "ernie4_5_moe", "exaone", "exaone4", "exaone_moe", "falcon_mamba", "flex_olmo", "gemma", "gemma2",
        "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss",
        "granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jais2", "jamba",
        "jetmoe", "lfm2", "llama", "mamba", "mimo_v2_flash", "minimax_m2", "ministral", "ministral3", "mistral",
        "mixtral", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon",
        "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
        "qwen3_next", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma",
    )
)  # fmt: skip
"""Architectures whose block hands on what it reads, to the bit, where all its tensors are zero: each was tried."""


@dataclass(frozen=True, slots=True)
class Part:
    """What units hold of one tensor.

    Args:
        info: the tensor: a matrix, or a bias.
        block: position of its block among the blocks.
        axis: of the tensor, along which units lie.
        sections: offset and width: unit u holds the indices from ``offset + u * width``, `width` of them, in each.
        output: whether this is the matrix that reads the units' outputs; of whole blocks, any matrix.
        unit: the one unit that holds all of it, an expert whose matrices are tensors of their own; None: units lie
            along the axis.
    """

    info: TensorInfo
    block: int
    axis: int
    sections: tuple[tuple[int, int], ...]
    output: bool
    unit: int | None = None

    def touched(self, units: Sequence[int]) -> bool:
        """Say whether any of the units holds some of the tensor."""
        return bool(units) if self.unit is None else self.unit in units

    def indices(self, units: Tensor) -> Tensor:
        """Return the indices along the axis that units hold, one of which is `unit`; int64, on the units' device."""
        if self.unit is not None:
            return torch.arange(self.info.shape[self.axis], device=units.device)
        held = [
            (offset + units[:, None] * width + torch.arange(width, device=units.device)).flatten()
            for offset, width in self.sections
        ]
        return torch.cat(held)

    def per_unit(self, values: Tensor, units: int) -> Tensor:
        """Return the sums over each unit's indices of values along the axis; shape (units,)."""
        total = torch.zeros(units, dtype=values.dtype, device=values.device)
        if self.unit is not None:
            total[self.unit] = values.sum()
            return total
        for offset, width in self.sections:
            total += values[offset : offset + units * width].view(units, width).sum(dim=1)
        return total


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The units of all blocks.

    Args:
        units: number of units in each block; a whole block is one.
        blocks: number of blocks.
        parts: of all blocks, in the pool's order.
        least: how many units have to stay in each block, where something depends on it.
        bare: blocks that have no units: the dense ones of a mixture.
    """

    units: int
    blocks: int
    parts: tuple[Part, ...]
    least: int = 0
    bare: frozenset[int] = frozenset()


def transposed(pool: ExpertPool) -> bool:
    """Say whether the pool's architecture stores the matrices of its blocks inputs x outputs."""
    return stored_turned(pool.checkpoints[BASE].config)


def anatomy(pool: ExpertPool, scope: str) -> Anatomy:
    """Return the units that a structured scope removes.

    Args:
        pool: the experts.
        scope: ``neurons``: the hidden units of every block's MLP, with their biases; ``heads``: its key/value groups,
            each with all query heads that read it; ``moe-experts``: the experts of a mixture, each with its row of the
            router, see `mixtures`; ``blocks``: a block with all its tensors, norms and biases too,
            without which it adds nothing to the residual stream.

    Raises:
        InputError: for an architecture not known to it, mixtures of experts among them, or tensors of other shapes.
    """
    return pool.remembered.get(("anatomy", scope), lambda: _anatomy(pool, scope))


def _anatomy(pool: ExpertPool, scope: str) -> Anatomy:
    if scope not in STRUCTURED:
        raise ValueError(f"scope: expected one of {', '.join(STRUCTURED)}, got {scope!r}")
    if scope == BLOCKS:
        return _whole_blocks(pool)
    if scope == MOE_EXPERTS:
        return _mixed_experts(pool)
    kind = _kind(pool)
    modules = _LAYOUTS.get(kind, {}).get(scope)
    if modules is None:
        known = ", ".join(sorted(name for name, layout in _LAYOUTS.items() if scope in layout))
        raise InputError(f"scope {scope!r} knows the architectures {known}; the base is {kind!r}")
    parts: list[Part] = []
    found = set()
    blocks = by_block(pool)
    for block, (group, own) in enumerate(blocks.items()):
        missing = [stem for stem, _, _ in modules if len(_shape(own, f"{stem}.weight")) != 2]
        if missing:
            raise InputError(f"scope {scope!r}: {pool.groups[group]} has no matrix {missing[0]}.weight")
        reader = next(stem for stem, side, _ in modules if side == "in")
        units, widths = _widths(pool, scope, _shape(own, f"{reader}.weight")[0 if transposed(pool) else 1])
        found.add(units)
        for stem, side, stack in modules:
            sections = []
            size = 0
            for each in stack:
                sections.append((size, widths[each]))
                size += units * widths[each]
            matrix = own[f"{stem}.weight"]
            axis = int((side == "in") != transposed(pool))
            if matrix.shape[axis] != size:
                raise InputError(
                    f"scope {scope!r}: expected {size} along dimension {axis} of {matrix.name}, got shape "
                    f"{matrix.shape}"
                )
            parts.append(Part(matrix, block, axis, tuple(sections), side == "in"))
            if side == "out" and f"{stem}.bias" in own:
                parts.append(Part(own[f"{stem}.bias"], block, 0, tuple(sections), False))
    if len(found) != 1:
        raise InputError(f"scope {scope!r}: expected as many units in every block, got {sorted(found)}")
    return Anatomy(found.pop(), len(blocks), tuple(parts))


def _whole_blocks(pool: ExpertPool) -> Anatomy:
    kind = _kind(pool)
    if kind not in RESIDUAL:
        raise InputError(
            f"scope {BLOCKS!r} knows the architectures {', '.join(sorted(RESIDUAL))}; the base is {kind!r}: whether a "
            "block of zeros leaves what it reads as it is was not tried there"
        )
    parts = []
    for block, own in enumerate(by_block(pool).values()):
        for info in own.values():
            matrix = len(info.shape) > 1
            # of matrices, also of a stack of them, along what they read
            axis = len(info.shape) - 1 if matrix and not transposed(pool) else 0
            if info.shape:
                parts.append(Part(info, block, axis, ((0, info.shape[axis]),), matrix))
    return Anatomy(1, 1 + max(part.block for part in parts), tuple(parts))


def _mixed_experts(pool: ExpertPool) -> Anatomy:
    found = mixture(pool)
    if found.experts <= found.least:
        raise InputError(
            f"scope {MOE_EXPERTS!r}: the router of the base chooses {found.least} of {found.experts} experts for every "
            "token: none can go"
        )
    parts = [
        Part(each.info, block, each.axis, ((0, 1),), False, each.expert)
        for block, held in found.held.items()
        for each in held
    ]
    bare = frozenset(range(found.blocks)) - set(found.held)
    return Anatomy(found.experts, found.blocks, tuple(parts), found.least, bare)


def _kind(pool: ExpertPool) -> str:
    """Return the architecture of the text model."""
    return str(text_config(pool.checkpoints[BASE].config).get("model_type"))


def _shape(own: Mapping[str, TensorInfo], name: str) -> tuple[int, ...]:
    return own[name].shape if name in own else ()


def _widths(pool: ExpertPool, scope: str, read: int) -> tuple[int, dict[str, int]]:
    """Return the number of units in a block and how many rows each takes, given how many features are read of all."""
    if scope == "neurons":
        return read, {"n": 1}
    config = pool.checkpoints[BASE].config
    heads = config.get("num_attention_heads", config.get("n_head"))
    groups = config.get("num_key_value_heads") or heads
    if type(heads) is not int or type(groups) is not int or min(heads, groups) < 1 or heads % groups or read % heads:
        raise InputError(
            f"scope 'heads': expected {read} features to be divided among attention heads and these among key/value "
            f"heads; config.json of the base has {heads!r} and {groups!r}"
        )
    width = read // heads
    return groups, {"q": heads // groups * width, "k": width, "v": width, "qkv": 3 * width}
