"""How a ``config.json`` says how wide blocks are: one width for all, or one for each where that can be read.

Which architectures read one for each is not listed here: transformers is asked, by building the model without memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from sae_moo.errors import InputError
from sae_moo.experts.anatomy import anatomy
from sae_moo.experts.layout import text_config
from sae_moo.experts.live import known_config, places, without_memory
from sae_moo.experts.pool import ExpertPool
from sae_moo.recipe import BASE

NAMES_HEAD_SIZE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""Model types whose ``config.json`` can hold fewer heads of the same size (``head_dim``)."""
PER_BLOCK = "per_layer_config"
"""Where transformers' settings say what single layers have of their own."""


class Laid(Protocol):
    """A tensor as it is laid out: its name, shape and dtype."""

    @property
    def name(self) -> str:
        """What a checkpoint calls it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""

    @property
    def numel(self) -> int:
        """Number of its elements."""


def settings(config: Mapping[str, Any], scope: str, left: int, units: int, features: int) -> dict[str, int]:
    """Return what a ``config.json`` says of blocks with fewer units.

    Args:
        config: the ``config.json`` of the whole model.
        scope: ``neurons`` or ``heads``.
        left: number of units that are left.
        units: number of units that there were.
        features: how many inputs the matrix has that reads the units, of the whole model.
    """
    if scope == "neurons":
        return {"n_inner" if config.get("model_type") == "gpt2" else "intermediate_size": left}
    heads = int(config["num_attention_heads"])
    return {
        "num_attention_heads": left * (heads // units),
        "num_key_value_heads": left,
        "head_dim": features // heads,
    }


def one_for_each(config: Mapping[str, Any], blocks: Sequence[Mapping[str, int]]) -> Iterator[dict[str, Any]]:
    """Yield the ways in which a ``config.json`` can say a setting of every block, as changes to it.

    Args:
        config: the ``config.json`` to change.
        blocks: the settings of each block; the same keys in all.
    """
    listed = {key: [each[key] for each in blocks] for key in blocks[0]}
    common = {key: values[0] for key, values in listed.items() if len(set(values)) == 1}
    yield listed | common
    own = {str(int(block)): dict(each) for block, each in (config.get(PER_BLOCK) or {}).items()}
    for i, each in enumerate(blocks):
        own[str(i)] = own.get(str(i), {}) | {key: value for key, value in each.items() if key not in common}
    yield common | {PER_BLOCK: own}


def is_read(config: Mapping[str, Any], entries: Sequence[Laid]) -> bool:
    """Say whether the model that transformers builds of a ``config.json`` has exactly the tensors given; in a second.

    Runs no code of a folder's own.
    """
    merged = [entry for entry in entries if entry.dtype.is_floating_point and entry.numel]
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            built = places(without_memory(Path(folder)), [entry.name for entry in merged])
        except InputError:
            return False
    return all(tuple(built[entry.name].shape) == entry.shape for entry in merged)


def narrower(pool: ExpertPool, scope: str, left: int) -> dict[str, int] | None:
    """Return what the base's ``config.json`` would say of blocks with fewer units, as many in each.

    Args:
        pool: the experts.
        scope: ``neurons`` or ``heads``.
        left: number of units that are left.

    Returns:
        The settings that change; None where it cannot say that there are fewer.

    Raises:
        InputError: if the scope does not know the architecture.
    """
    config = pool.checkpoints[BASE].config
    whole = anatomy(pool, scope)
    if text_config(config) is not config or (scope == "heads" and config.get("model_type") not in NAMES_HEAD_SIZE):
        return None
    reader = next(part for part in whole.parts if part.output)
    return settings(config, scope, left, whole.units, reader.info.shape[reader.axis])


def said(config: Mapping[str, Any]) -> bool:
    """Say whether transformers takes a ``config.json``: some refuse numbers of heads."""
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        return known_config(Path(folder)) is not None


def reads_one_for_each(pool: ExpertPool, scope: str) -> bool:
    """Say whether transformers reads a number of units for each block of models like the base; takes seconds.

    Args:
        pool: the experts.
        scope: ``neurons`` or ``heads``; the base has more than one unit of it.
    """
    config, whole = pool.checkpoints[BASE].config, anatomy(pool, scope)
    for fewer in range(whole.units // 2, 0, -1):  # a number that can be said at all
        rows = [narrower(pool, scope, fewer if block == 0 else whole.units) for block in range(whole.blocks)]
        changes = [row for row in rows if row is not None]
        if len(changes) == len(rows) and said({**config, **changes[0]}):
            break
    else:
        return False
    shapes = {part.info.name: list(part.info.shape) for part in whole.parts if part.block == 0}
    for part in whole.parts:
        if part.block == 0:
            shapes[part.info.name][part.axis] = sum(fewer * width for _, width in part.sections)
    entries = [replace(info, shape=tuple(shapes.get(info.name, info.shape))) for info in pool.tensors]
    return any(is_read({**config, **each}, entries) for each in one_for_each(config, changes))
