"""Structured pruning: a model with zeroed units computes what the model without them computes."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
from random_pools import made_once, random_pool
from stand_ins import weights_of

from sae_moo.errors import InputError
from sae_moo.experts.anatomy import anatomy
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.calibration import add_norms
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.ops.prune import target_count
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe

MATH = Expert("math")
SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}
GROUPED = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# model type -> settings, and how settings name numbers of neurons and of heads
MAKES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, GROUPED | {"mlp_bias": True, "attention_bias": True}),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, GROUPED),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, GROUPED),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, GROUPED),
    "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM, GROUPED),
    "gemma3_text": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, GROUPED),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, GROUPED),
    "olmo2": (hf.Olmo2Config, hf.Olmo2ForCausalLM, SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, GROUPED | SPECIAL),
    "gpt2": (
        hf.GPT2Config,
        hf.GPT2LMHeadModel,
        {"vocab_size": 32, "n_embd": 16, "n_inner": 12, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, SMALL | {"num_attention_heads": 4}),
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Return a function: model type -> pool of a base and one expert with random weights and biases, made once."""

    def make(folder, kind):
        config, model, settings = MAKES[kind]
        return random_pool(folder, lambda: model(config(**settings)), std=0.3)

    return made_once(tmp_path_factory, make)


def logits(model) -> torch.Tensor:
    model.config._attn_implementation = "eager"
    tokens = torch.arange(24).reshape(2, 12) % 29 + 3
    return model(input_ids=tokens).logits


def without(kind: str, pool: ExpertPool, model, scope: str, units, left: int):
    """Build the smaller transformers model that has the other units only."""
    config, make, settings = MAKES[kind]
    if scope == "neurons":
        settings = settings | {("n_inner" if kind == "gpt2" else "intermediate_size"): left}
    else:
        heads = settings["num_attention_heads"] // settings.get("num_key_value_heads", settings["num_attention_heads"])
        settings = settings | {"num_attention_heads": left * heads, "num_key_value_heads": left}
    small = make(config(**settings)).eval()
    whole = anatomy(pool, scope)
    parts = {part.info.name: part for part in whole.parts}
    places = pool.parameters(small)
    for name, weight in weights_of(pool, model).items():
        if name in parts:
            part = parts[name]
            kept = torch.tensor([u for u in range(whole.units) if u not in units[part.block]])
            weight = weight.index_select(part.axis, part.indices(kept).sort().values)
        with torch.no_grad():
            places[name].copy_(weight)
    return small


@pytest.mark.parametrize(
    ("kind", "scope"),
    [(kind, "neurons") for kind in MAKES]
    + [(kind, "heads") for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")],
)
def test_zeroed_units_are_as_good_as_gone(pools, kind, scope):
    pool = pools(kind)
    model = pool.live_model()
    report = materialize(Prune(MATH, 0.5, scope=scope), pool, model)
    units = report.recipe.units
    whole = anatomy(pool, scope)
    assert [len(row) for row in units] == [target_count(0.5, whole.units)] * 2
    assert any(len(part.info.shape) == 1 for part in whole.parts) == (
        kind in ("gpt2", "gpt_neox") or (kind, scope) == ("qwen2", "heads") or kind == "llama"
    )
    small = without(kind, pool, model, scope, units, whole.units - len(units[0]))
    torch.testing.assert_close(logits(model), logits(small), rtol=1e-4, atol=1e-5)
    zeros = sum(int((weight == 0).sum()) for name, weight in weights_of(pool, model).items() if "norm" not in name)
    held = sum(part.info.numel for part in whole.parts)
    assert zeros == held * len(units[0]) // whole.units, "nothing else is zero"


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("gone", [0, 1])
def test_a_removed_block_hands_on_what_it_reads(pools, kind, gone):
    pool = pools(kind)
    model = pool.live_model()
    rows = tuple((0,) if block == gone else () for block in range(2))
    report = materialize(Prune(MATH, 0.5, scope="blocks", units=rows), pool, model)
    through = []
    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    stack[gone].register_forward_hook(
        lambda module, args, given, out: through.append((args[0], out if torch.is_tensor(out) else out[0])),
        with_kwargs=True,
    )
    logits(model)
    ((read, written),) = through
    assert torch.equal(read, written)
    assert [report.group_sparsity[f"block.{block}"] for block in range(2)] == [float(bool(row)) for row in rows]
    kept = {name: weight for name, weight in weights_of(pool, model).items() if f".{gone}." not in name}
    assert all(torch.equal(weight, pool.load("math", name)) for name, weight in kept.items())


def test_blocks_compete_with_each_other_by_all_their_matrices(pools):
    pool = pools("mistral")
    norms = [
        sum(float(pool.load("math", info.name).double().square().sum()) for info in pool.tensors
            if info.prunable and info.name.startswith(f"model.layers.{block}."))
        for block in range(2)
    ]  # fmt: skip
    least = min(range(2), key=lambda block: norms[block])
    found = resolve(Prune(MATH, 0.5, scope="blocks"), pool)
    assert found.units == tuple((0,) if block == least else () for block in range(2))
    assert resolve(Prune(MATH, 0.2, scope="blocks"), pool).units == ((), ()), "the nearest whole number of blocks"
    factors = add_norms(
        pool, {i.name: torch.full(i.shape[1:], 1.0 + (".0." in i.name)) for i in pool.tensors if i.prunable}
    )
    weighed = resolve(Prune(MATH, 0.5, "wanda", "blocks", calibration=factors), pool).units
    assert weighed == (((), (0,)) if 4 * norms[0] > norms[1] else ((0,), ()))


@pytest.mark.parametrize("scope", ["neurons", "heads"])
def test_blocks_may_lose_different_numbers_of_units(pools, scope):
    pool = pools("llama")
    model = pool.live_model()
    whole = anatomy(pool, scope)
    asked = tuple({"block.0": 0.5, "block.1": 0.0}.get(name, 0.0) for name in pool.groups)
    found = materialize(Prune(MATH, asked, scope=scope), pool, model).recipe
    alike = resolve(Prune(MATH, 0.5, scope=scope), pool)
    assert found.units == (alike.units[0], ())
    assert Recipe.from_json(found.to_json()) == found
    first = weights_of(pool, model)
    materialize(found, pool, model)
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(pool, model).items())
    for part in whole.parts:
        lines = first[part.info.name].movedim(part.axis, 0).reshape(part.info.shape[part.axis], -1)
        assert int((lines == 0).all(dim=1).sum()) == len(part.indices(torch.tensor(found.units[part.block])))


def test_blocks_neurons_and_scattered_zeros_in_one_candidate(pools):
    """Zeros that are there count: a later pruning asks for a share of all, and takes them first."""
    pool = pools("llama")
    model = pool.live_model()
    by_group = tuple({"block.0": 0.5, "block.1": 0.6}.get(name, 0.0) for name in pool.groups)
    without = Prune(MATH, 0.5, scope="blocks", units=((0,), ()))
    narrow = Prune(without, tuple({"block.1": 0.5}.get(name, 0.0) for name in pool.groups), scope="neurons")
    for rescale in (False, True):
        report = materialize(Cast(Prune(narrow, by_group, rescale=rescale), "float32"), pool, model)
        assert report.group_sparsity["block.0"] == 1.0
        assert report.group_sparsity["block.1"] == pytest.approx(0.6, abs=0.01)
        assert all(weight.isfinite().all() for weight in weights_of(pool, model).values()), "0 / 0 is no factor"
        down = weights_of(pool, model)["model.layers.1.mlp.down_proj.weight"]
        assert int((down == 0).all(dim=0).sum()) >= 6, "whole neurons"


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_removed_heads_say_nothing(pools, kind):
    """Their settings cannot name a smaller number of heads of the same width: look at what the heads write instead."""
    pool = pools(kind)
    model = pool.live_model()
    report = materialize(Prune(MATH, 0.5, scope="heads"), pool, model)
    written = []
    blocks = model.transformer.h if kind == "gpt2" else model.gpt_neox.layers
    for block in blocks:
        read = block.attn.c_proj if kind == "gpt2" else block.attention.dense
        read.register_forward_pre_hook(lambda module, args: written.append(args[0]))
    logits(model)
    for units, heads in zip(report.recipe.units, written, strict=True):
        silent = [u for u in range(4) if not heads.reshape(-1, 4, 4)[:, u].any()]
        assert silent == list(units)
    for part in anatomy(pool, "heads").parts:
        weight = pool.parameters(model)[part.info.name]
        gone = part.indices(torch.tensor(report.recipe.units[part.block]))
        assert not weight.index_select(part.axis, gone).any()


def block_of(pool, block, stems):
    return [pool.load("math", f"model.layers.{block}.{stem}.weight").double() for stem in stems]


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.99])
def test_the_units_of_least_norm_go_and_one_of_a_block_stays(pools, sparsity):
    pool = pools("mistral")
    neurons = resolve(Prune(MATH, sparsity, scope="neurons"), pool).units
    heads = resolve(Prune(MATH, sparsity, scope="heads"), pool).units
    for block in range(2):
        gate, up, down = block_of(pool, block, ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
        scores = [math.sqrt((gate[u] ** 2).sum() + (up[u] ** 2).sum() + (down[:, u] ** 2).sum()) for u in range(12)]
        assert neurons[block] == tuple(
            sorted(sorted(range(12), key=lambda u: scores[u])[: min(round(sparsity * 12), 11)])
        )
        q, k, v, o = block_of(pool, block, [f"self_attn.{x}_proj" for x in "qkvo"])
        scores = []
        for u in range(2):
            rows, wide = slice(4 * u, 4 * u + 4), slice(8 * u, 8 * u + 8)
            scores.append(
                float((q[wide] ** 2).sum() + (k[rows] ** 2).sum() + (v[rows] ** 2).sum() + (o[:, wide] ** 2).sum())
            )
        assert heads[block] == tuple(sorted(sorted(range(2), key=lambda u: scores[u])[: min(round(sparsity * 2), 1)]))


def test_weighed_by_activations_it_is_the_norm_of_what_is_read(pools):
    pool = pools("mistral")
    torch.manual_seed(3)
    norms = {info.name: torch.rand(info.shape[1]) for info in pool.tensors if info.prunable}
    digest = add_norms(pool, norms)
    neurons = [resolve(Prune(MATH, n / 12, "wanda", "neurons", calibration=digest), pool).units for n in range(12)]
    heads = resolve(Prune(MATH, 0.5, "wanda", "heads", calibration=digest), pool).units
    for block in range(2):
        down, o = block_of(pool, block, ["mlp.down_proj", "self_attn.o_proj"])
        seen = norms[f"model.layers.{block}.mlp.down_proj.weight"].double()
        scores = [float(seen[u] * down[:, u].norm()) for u in range(12)]
        order = sorted(range(12), key=lambda u: scores[u])
        assert [rows[block] for rows in neurons] == [tuple(sorted(order[:n])) for n in range(12)]
        seen = norms[f"model.layers.{block}.self_attn.o_proj.weight"].double()
        scores = [sum(float((seen[j] * o[:, j].norm()) ** 2) for j in range(8 * u, 8 * u + 8)) for u in range(2)]
        assert heads[block] == (min(range(2), key=lambda u: scores[u]),)


def test_a_resolved_structured_recipe_is_replayed_to_the_bit(pools):
    pool = pools("llama")
    model = pool.live_model()
    merged = Merge("linear", (Prune(MATH, 0.3, scope="neurons"), Expert("base")), (0.6, 0.4))
    asked = Cast(Prune(Prune(merged, 0.5, scope="heads"), 0.25, scope="neurons"), "float32")
    report = materialize(asked, pool, model)
    first = weights_of(pool, model)
    assert report.recipe != asked
    assert resolve(report.recipe, pool) is report.recipe
    assert type(asked).from_json(report.recipe.to_json()) == report.recipe
    materialize(report.recipe, pool, model)
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(pool, model).items())


def test_equal_units_go_in_order_and_dead_ones_first(pools):
    pool = pools("llama")
    zero = Merge("linear", (Expert("base"),), (0.0,), {"normalize": False})
    assert resolve(Prune(zero, 0.5, scope="neurons"), pool).units == (tuple(range(6)),) * 2
    once = resolve(Prune(MATH, 0.3, scope="neurons"), pool)
    assert resolve(Prune(once, 0.3, scope="neurons"), pool).units == once.units


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(pools, dtype):
    pool = pools("gpt2")
    model = pool.live_model(dtype)
    report = materialize(
        Cast(Prune(Merge("linear", (MATH, Expert("base")), (1, 1)), 0.5, scope="neurons"), dtype), pool, model
    )
    assert report.tensor_sparsity["transformer.h.0.mlp.c_fc.bias"] == 0.5
    assert report.tensor_sparsity["transformer.h.0.mlp.c_fc.weight"] == pytest.approx(0.5, abs=0.01)
    assert report.tensor_sparsity["transformer.h.0.mlp.c_proj.bias"] == 0


def test_what_is_refused_is_named(pools, tiny):
    with pytest.raises(InputError, match=r"scope 'heads' knows the architectures gemma, .*; the base is 'olmo2'"):
        materialize(Prune(MATH, 0.5, scope="heads"), pools("olmo2"), pools("olmo2").live_model())
    groups = len(tiny.groups)
    with pytest.raises(InputError, match=f"expected {groups} sparsities, one per group, got {len(tiny.tensors)}"):
        materialize(Prune(MATH, (0.5,) * len(tiny.tensors), scope="neurons"), tiny, tiny.live_model())
    with pytest.raises(InputError, match="expected units below 24 for each of 2 blocks, got 1 rows up to 3"):
        materialize(Prune(MATH, 0.5, scope="neurons", units=((3,),)), tiny, tiny.live_model())
    with pytest.raises(InputError, match="expected units below 24 for each of 2 blocks, got 2 rows up to 24"):
        materialize(Prune(MATH, 0.5, scope="neurons", units=((3,), (24,))), tiny, tiny.live_model())


def test_a_mixture_of_experts_is_refused(tiny, monkeypatch):
    other = ExpertPool(tiny.checkpoints)
    monkeypatch.setitem(other.checkpoints["base"].config, "model_type", "mixtral")
    with pytest.raises(InputError, match="the base is 'mixtral'"):
        anatomy(other, "neurons")
