"""How a ``config.json`` says how wide blocks are: one width for all, or one for each where that can be read.

Which architectures read one for each is not listed here: transformers is asked, by building the model without memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_moo.deploy.tensor_files import Entry
from sae_moo.errors import InputError
from sae_moo.experts.live import places, without_memory

PER_BLOCK = "per_layer_config"
"""Where transformers' settings say what single layers have of their own."""


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


def is_read(config: Mapping[str, Any], entries: Sequence[Entry]) -> bool:
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
