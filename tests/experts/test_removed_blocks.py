"""Whole blocks: in every architecture that the scope knows, a block of zeros hands on what it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from sae_moo.errors import InputError
from sae_moo.experts import anatomy as anatomies
from sae_moo.experts.layout import BLOCK
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune

COMMON = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
COMMON |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4, "max_position_embeddings": 96}
COMMON |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
MIXTURE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
OTHER_NAMES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96, "n_inner": 24, "d_model": 16, "n_heads": 2}
OTHER_NAMES |= {"n_layers": 2, "ffn_dim": 24, "num_layers": 2, "num_heads": 2}
TOKENS = torch.arange(24).reshape(2, 12) % 29 + 3


def tiny_model(kind: str) -> Any:
    """Build a small random model: architectures call their sizes differently, and refuse those of others."""
    refusals = []
    for names in ({}, OTHER_NAMES, MIXTURE):
        torch.manual_seed(0)
        try:
            model = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(kind, **{**COMMON, **names}))
            for parameter in model.requires_grad_(False).parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            model.eval()(input_ids=TOKENS, use_cache=False)
        except Exception as error:  # whatever its classes raise at the names of others
            refusals.append(error)
        else:
            return model
    raise AssertionError(f"{kind}: {refusals}")


@pytest.mark.parametrize("kind", sorted(anatomies.RESIDUAL))
def test_a_block_of_zeros_hands_on_what_it_reads(kind):
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {hf.__version__} has no {kind}")
    model = tiny_model(kind)
    blocks = {
        int(place[1]): module
        for name, module in model.named_modules()
        if (place := BLOCK.search(f"{name}.")) and place.end() == len(name) + 1
    }
    assert sorted(blocks) == [0, 1]
    for module in blocks.values():
        held = [parameter.clone() for parameter in module.parameters()]
        for parameter in module.parameters():
            parameter.zero_()
        through = []
        hook = module.register_forward_hook(
            lambda module, args, given, out, seen=through: seen.append(
                (args[0] if args else given["hidden_states"], out if torch.is_tensor(out) else out[0])
            ),
            with_kwargs=True,
        )
        model(input_ids=TOKENS, use_cache=False)
        hook.remove()
        ((read, written),) = through
        assert torch.equal(read, written)
        for parameter, value in zip(module.parameters(), held, strict=True):
            parameter.copy_(value)


def test_another_architecture_is_refused_by_name(tiny, monkeypatch):
    monkeypatch.setattr(anatomies, "RESIDUAL", frozenset({"gemma"}))
    with pytest.raises(InputError, match="scope 'blocks' knows the architectures gemma; the base is 'llama'"):
        anatomies._whole_blocks(tiny)


@pytest.mark.parametrize(("share", "gone"), [(0.0, 0), (0.24, 0), (0.26, 1), (0.76, 1), (0.95, 1)])
def test_a_share_of_blocks_is_the_nearest_whole_number_that_leaves_one(tiny, share, gone):
    report = materialize(Prune(Expert("math"), share, scope="blocks"), tiny, tiny.live_model())
    assert sum(map(bool, report.recipe.units)) == gone
    assert report.sparsity < 1


def test_without_any_block_there_is_no_model(tiny):
    one = Prune(Expert("math"), 0.5, scope="blocks", units=((0,), ()))
    for every in (Prune(one, 0.5, scope="blocks", units=((), (0,))), replace(one, units=((0,), (0,)))):
        with pytest.raises(InputError, match="scope 'blocks' would remove all 2 blocks, and without them no model"):
            materialize(Cast(every, "float32"), tiny, tiny.live_model())
        materialize(
            Merge("linear", (every, Expert("base")), (0.5, 0.5)), tiny, tiny.live_model()
        )  # the base's are there
