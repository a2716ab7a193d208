"""Which tensors lie in which transformer block of the text model, by their names within it."""

from __future__ import annotations

from sae_moo.experts.layout import BLOCK
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.recipe.groups import in_block


def by_block(pool: ExpertPool) -> dict[int, dict[str, TensorInfo]]:
    """Return group -> name within its block -> tensor, blocks in order."""
    blocks: dict[int, dict[str, TensorInfo]] = {}
    for info in pool.tensors:
        name = BLOCK.search(info.name)
        if name is not None and in_block(pool.groups[info.group]):
            blocks.setdefault(info.group, {})[info.name[name.end() :]] = info
    return dict(sorted(blocks.items()))
