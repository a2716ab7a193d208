"""Configurations that are none of mergekit-yaml's but look alike: named, with what makes something of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What only these files have, and what they are.
_TOOLS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"genome"}),
        "a mergekit-evolve configuration: it searches. `sae-moo search` does, by a configuration of its own with the "
        "same base, models and tasks",
    ),
    (
        frozenset({"layer_slices"}),
        "a bakllama configuration: write its layer_slices as slices of merge_method: passthrough",
    ),
    (
        frozenset({"finetuned_model", "max_rank", "distribute_scale", "sv_epsilon", "save_module", "rank"}),
        "settings of mergekit-extract-lora: it makes an adapter of a model, no merge. An adapter that it has made is "
        "merged as model+adapter",
    ),
    (
        frozenset({"study", "objectives", "tasks"}),
        "a configuration of a search: sae-moo search reads it",
    ),
)
_MOE = (
    "a mergekit-moe configuration: its experts become a mixture, whose weights mergekit-moe puts side by side, no "
    "merge. To merge the same models, list them under models with a merge_method"
)


def other_tool(raw: Mapping[Any, Any]) -> str | None:
    """Say what the file of another tool is; None if it is none that is known."""
    if "experts" in raw and ("merge_method" not in raw or "gate_mode" in raw):
        return _MOE if "objectives" not in raw else None
    if "merge_method" in raw:
        return None
    return next((what for keys, what in _TOOLS if keys & raw.keys()), None)
