"""What is zero as a whole in the blocks of a model: whole blocks, and units within them.

Judged by the weights themselves, however they came to be zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sae_moo.deploy.stream import Stream
from sae_moo.experts.anatomy import Anatomy, anatomy
from sae_moo.experts.layout import BLOCK, text_config
from sae_moo.recipe import BASE, BLOCKS
from sae_moo.recipe.groups import in_block

_SEPARATE = re.compile(r"(self_attn\.o_proj|mlp\.down_proj)\.(weight|bias)")
_WRITERS: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "phi3"), _SEPARATE
    ),
    "gpt2": re.compile(r"(attn|mlp)\.c_proj\.(weight|bias)"),
    "gpt_neox": re.compile(r"(attention\.dense|mlp\.dense_4h_to_h)\.(weight|bias)"),
}
"""Model type -> what the tensors are called, within a block, whose products are added to the residual stream.

Where all of them are zero the block adds zero, which leaves every number as it is: where norms come first (Llama),
where they come last, have no bias and so keep zero at zero (Gemma2, Gemma3, OLMo2), and where attention and MLP stand
side by side (GPT-NeoX). Of the other architectures that have the scope ``blocks`` all tensors of a block are asked.
"""


class Vacancies:
    """What a stream's tensors have of zeros along their axes; each tensor is computed once.

    Args:
        stream: the whole weights.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held: dict[str, tuple[Tensor, ...]] = {}

    @property
    def blocks(self) -> int:
        """How many blocks the text model has."""
        return sum(in_block(group) for group in self._stream.pool.groups)

    def idle(self) -> tuple[int, ...]:
        """Return the numbers of the blocks that are the identity on the residual stream, ascending.

        Raises:
            InputError: for an architecture of which it is not known whether blocks of zeros are.
        """
        pool = self._stream.pool
        writers = _WRITERS.get(text_config(pool.checkpoints[BASE].config).get("model_type", ""))
        silent: dict[int, bool] = {}
        for part in anatomy(pool, BLOCKS).parts:
            name = BLOCK.search(part.info.name)
            assert name is not None
            number = int(name[1])
            if silent.get(number, True) and (writers is None or writers.fullmatch(part.info.name, name.end())):
                silent[number] = not bool(self._alive(part.info.name)[0].any())
        return tuple(number for number, alone in sorted(silent.items()) if alone)

    def units(self, whole: Anatomy) -> Tensor:
        """Return whether all that a unit holds is zero; truth values, shape (blocks, units)."""
        alive = torch.zeros(whole.blocks, whole.units)
        for part in whole.parts:
            alive[part.block] += part.per_unit(self._alive(part.info.name)[part.axis].float(), whole.units)
        return alive == 0

    def _alive(self, name: str) -> tuple[Tensor, ...]:
        """Return, for every axis of a tensor, whether each index along it holds a number other than zero."""
        if name not in self._held:
            held = self._stream.tensor(name) != 0
            axes = range(held.ndim)
            rest = [[other for other in axes if other != axis] for axis in axes]
            self._held[name] = tuple(held.any(dim=others) if others else held for others in rest)
        return self._held[name]
