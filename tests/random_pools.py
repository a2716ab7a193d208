"""Pools of small models with random weights, of whatever architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae_moo import zoo
from sae_moo.experts.pool import ExpertPool


def random_pool(
    folder: Path,
    make: Callable[[], Any],
    std: float | None = None,
    tokenizer: Any = None,
    change: Callable[[Any], None] = lambda model: None,
) -> ExpertPool:
    """Return a pool of a base and the expert ``math``, which lie in a folder.

    Args:
        folder: where they are saved.
        make: builds one of them.
        std: of the normal distribution that all weights and biases are drawn from; None: they are as they were built.
        tokenizer: what is saved beside them; None: nothing.
        change: what is done to the expert.
    """
    for seed, name in enumerate(("base", "math")):
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters() if std is not None else ():
            torch.nn.init.normal_(parameter, std=std)
        if name == "math":
            change(model)
        model.save_pretrained(folder / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    return ExpertPool.open(str(folder / "base"), {"math": str(folder / "math")})


def random_gpt2(folder: Path) -> ExpertPool:
    """Return a pool whose matrices are stored inputs x outputs, with the zoo's tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(zoo.checkpoint("base"))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return random_pool(folder, lambda: GPT2LMHeadModel(config), tokenizer=tokenizer)


def made_once(tmp_path_factory: Any, make: Callable[[Path, str], ExpertPool]) -> Callable[[str], ExpertPool]:
    """Return a function: kind -> its pool, made in a folder of its own when it is first asked for."""
    made: dict[str, ExpertPool] = {}

    def pool(kind: str) -> ExpertPool:
        if kind not in made:
            made[kind] = make(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return pool
