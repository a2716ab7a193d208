"""Experts of a mixture are removed with their rows of the router, and routers never choose what is removed."""

from __future__ import annotations

import pytest
import torch
from mixture_kinds import EXPERTS, KINDS
from stand_ins import weights_of

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.anatomy import anatomy
from sae_moo.experts.live import load_model
from sae_moo.experts.mixtures import KNOWN, mixture
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.removed_experts import masks_experts, removed_experts
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe import Cast, Expert, Merge, Prune

BASE, MATH = Expert("base"), Expert("math")
MEAN = Merge("linear", (BASE, MATH), (0.5, 0.5))
SCOPE = "moe-experts"


def without(recipe, rows):
    return Prune(recipe, len(rows[0]) / EXPERTS, scope=SCOPE, units=tuple(map(tuple, rows)))


def logits(model):
    return model(torch.arange(24).reshape(2, 12) % 61 + 3).logits


def of_expert(name: str, weight: torch.Tensor, expert: int) -> torch.Tensor | None:
    """Return what of a tensor is an expert's, told by the name alone."""
    if f".experts.{expert}." in name:
        return weight
    if ".experts." in name and name.split(".experts.")[1][0].isdigit():
        return None
    if any(part in name for part in ("e_score_correction_bias", "expert_bias")):
        return weight.flatten()[expert]
    routed = (".gate.weight", ".gate.wg.weight", ".router.weight", ".router.bias", ".router.layer.weight")
    stacked = (".experts.", "moe.input_linear", "moe.output_linear")
    return weight[expert] if name.endswith(routed) or any(part in name for part in stacked) else None


def test_every_architecture_is_tried():
    assert sorted(KNOWN) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_an_experts_goes_and_nothing_else(mixtures, kind):
    pool = mixtures(kind)
    model = pool.live_model()
    materialize(MEAN, pool, model)
    before = weights_of(pool, model)
    report = materialize(Prune(MEAN, 0.5, scope=SCOPE), pool, model)
    bearing = KINDS[kind][1]
    assert [len(row) for row in report.recipe.units] == [3 if block in bearing else 0 for block in range(3)]
    for name, weight in weights_of(pool, model).items():
        expected = before[name].clone()
        block = name.split("layers.")[-1].split(".")[0]
        for unit in report.recipe.units[int(block)] if block.isdigit() else ():
            part = of_expert(name, expected, unit)
            if part is not None:
                part.zero_()
        assert torch.equal(weight, expected), name


@pytest.mark.parametrize("kind", ["mixtral", "granitemoe"])
def test_the_experts_of_least_norm_go(mixtures, kind):
    pool = mixtures(kind)
    units = resolve(Prune(MATH, 0.5, scope=SCOPE), pool).units
    for block in range(3):
        own = {info.name: pool.load("math", info.name) for info in pool.tensors if f"layers.{block}." in info.name}
        parts = [[of_expert(name, weight, e) for name, weight in own.items()] for e in range(EXPERTS)]
        scores = [sum(float(part.double().square().sum()) for part in row if part is not None) for row in parts]
        assert units[block] == tuple(sorted(sorted(range(EXPERTS), key=lambda e: scores[e])[:3]))


def test_stacked_and_separate_experts_lose_the_same(mixtures, tmp_path):
    apart = mixtures("mixtral")
    for name in ("base", "math"):
        model = load_model(apart.checkpoints[name].folder, torch.float32, "cpu")
        model.save_pretrained(tmp_path / name, save_original_format=False)
    stacked = ExpertPool.open(str(tmp_path / "base"), {"math": str(tmp_path / "math")})
    asked = Prune(MEAN, 0.5, scope=SCOPE)
    assert resolve(asked, stacked).units == resolve(asked, apart).units
    models = [pool.live_model() for pool in (apart, stacked)]
    for pool, model in zip((apart, stacked), models, strict=True):
        materialize(asked, pool, model)
    torch.testing.assert_close(logits(models[0]), logits(models[1]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["olmoe", "gpt_oss", "deepseek_v3", "hunyuan_v1_moe"])
def test_routers_choose_what_is_there_until_another_model_is_written(mixtures, kind):
    pool = mixtures(kind)
    model = pool.live_model()
    materialize(MATH, pool, model)
    whole = logits(model)
    chosen: list[torch.Tensor] = []
    gates = [module for name, module in model.named_modules() if name.endswith((".gate", ".router"))]
    for gate in gates:
        gate.register_forward_hook(lambda gate, inputs, found: chosen.append(found[2]))
    rows = [(0, 2, 5) if block in KINDS[kind][1] else () for block in range(3)]
    recipe = Prune(MATH, 0.5, scope=SCOPE, units=tuple(rows))
    materialize(recipe, pool, model)
    assert masks_experts(model)
    pruned = logits(model)
    assert len(chosen) == len(KINDS[kind][1])
    assert {int(expert) for found in chosen for expert in found.flatten()} <= {1, 3, 4}
    assert bool(torch.isfinite(pruned).all())
    materialize(MATH, pool, model)
    assert not masks_experts(model)
    assert torch.equal(logits(model), whole)
    materialize(recipe, pool, model)
    assert torch.equal(logits(model), pruned)


def test_a_forward_pass_that_fails_leaves_nothing_masked(mixtures):
    pool = mixtures("mixtral")
    model = pool.live_model()
    materialize(Prune(MATH, 0.5, scope=SCOPE), pool, model)
    expected = logits(model)
    with pytest.raises((RuntimeError, TypeError)):
        model.model.layers[0].mlp.gate(torch.zeros(3, 5))
    assert float(torch.nn.functional.linear(torch.ones(1, 2), torch.ones(EXPERTS, 2)).min()) == 2
    assert torch.equal(logits(model), expected)


def test_in_half_precision(mixtures):
    pool = mixtures("qwen3_moe")
    model = pool.live_model("bfloat16")
    materialize(Cast(Prune(MATH, 0.5, scope=SCOPE), "bfloat16"), pool, model)
    assert masks_experts(model)
    assert bool(torch.isfinite(logits(model)).all())


def test_removed_is_what_is_zero_with_its_row_of_the_router(mixtures):
    pool = mixtures("mixtral")
    mixtures_of = mixture(pool)
    weights = {info.name: pool.load("math", info.name).clone() for info in pool.tensors}
    assert removed_experts(mixtures_of, weights.__getitem__) == {}
    router = "model.layers.1.block_sparse_moe.gate.weight"
    weights[router][3] = 0
    assert removed_experts(mixtures_of, weights.__getitem__) == {}
    for name in weights:
        if "layers.1.block_sparse_moe.experts.3" in name:
            weights[name].zero_()
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    routers = {name: weight for name, weight in weights.items() if name.endswith("gate.weight")}
    for load, counted in ((weights.__getitem__, None), (routers.__getitem__, zeros)):  # what is counted is not read
        ((block, row),) = removed_experts(mixtures_of, load, counted).items()
        assert (block, row.tolist()) == (1, [False, False, False, True, False, False])
    weights[router][3, 0] = 1
    assert removed_experts(mixtures_of, weights.__getitem__) == {}
    for name in weights:
        if "layers.1.block_sparse_moe" in name:
            weights[name].zero_()
    assert removed_experts(mixtures_of, weights.__getitem__) == {}, "a mixture without experts writes nothing"
    weights[router][0] = 1
    with pytest.raises(WeightsError, match="the mixture of block 1 has 1 of 6 experts that are not zero; its router"):
        removed_experts(mixtures_of, weights.__getitem__)


def test_every_mixture_loses_as_many_as_one_has_lost_already(mixtures):
    pool = mixtures("mixtral")
    parents = (without(BASE, [(0, 1)] * 3), without(MATH, [(0, 1), (2, 3), (4, 5)]))
    child = Merge("linear", parents, (0.5, 0.5))
    units = resolve(Prune(child, 1 / 6, scope=SCOPE), pool).units
    assert [len(row) for row in units] == [2, 2, 2]
    assert units[0] == (0, 1)
    assert [len(row) for row in resolve(Prune(child, 0.5, scope=SCOPE), pool).units] == [3, 3, 3]


def test_a_block_that_is_gone_asks_nothing_of_the_others(mixtures):
    pool = mixtures("mixtral")
    model = pool.live_model()
    shorter = Prune(MATH, 1 / 3, scope="blocks", units=((), (0,), ()))
    report = materialize(Prune(shorter, 1 / 3, scope=SCOPE), pool, model)
    assert [len(row) for row in report.recipe.units] == [2, 2, 2]
    assert bool(torch.isfinite(logits(model)).all())


def test_a_resolved_recipe_is_replayed_to_the_bit(mixtures):
    pool = mixtures("gpt_oss")
    model = pool.live_model()
    asked = Cast(Prune(Prune(MEAN, 0.4, scope=SCOPE), 0.7), "float32")
    report = materialize(asked, pool, model)
    first, said = weights_of(pool, model), logits(model)
    again = type(asked).from_json(report.recipe.to_json())
    assert again == report.recipe
    materialize(again, pool, model)
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(pool, model).items())
    assert torch.equal(logits(model), said)


REFUSED = {
    "too many": (
        Prune(MATH, 0.8, scope=SCOPE),
        "would remove 5 of 6 experts of every mixture; 2 have to stay, .* sparsity up to 0.6666",
    ),
    "by group": (Prune(MATH, (0.0, 0.5, 0.5, 0.5, 0.0), scope=SCOPE), "takes one sparsity, got 5: config.json has"),
    "uneven": (without(MATH, [(0,), (), (1, 2)]), "as many experts of every mixture, .* got 1, 0, 2"),
    "of a dense block": (without(MATH, [(0,), (1,), (1,)]), "none of the dense blocks; got 1, 1, 1"),
    "too many by name": (without(MATH, [range(5), (), range(5)]), "would remove 5 of 6 experts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_configuration_cannot_say_is_refused(mixtures, case):
    recipe, said = REFUSED[case]
    pool = mixtures("qwen2_moe")
    with pytest.raises(InputError, match=said):
        materialize(recipe, pool, pool.live_model())


def test_architectures_that_are_not_known_are_refused_by_name(mixtures, tiny, monkeypatch):
    with pytest.raises(InputError, match=r"'moe-experts' knows the architectures deepseek_v2, .*; the base is 'llama'"):
        anatomy(tiny, SCOPE)
    pool = ExpertPool(mixtures("deepseek_v3").checkpoints)
    monkeypatch.setitem(pool.checkpoints["base"].config, "n_group", 2)
    with pytest.raises(InputError, match="chooses among 2 groups of experts first"):
        anatomy(pool, SCOPE)
    pool = ExpertPool(mixtures("olmoe").checkpoints)
    monkeypatch.setitem(pool.checkpoints["base"].config, "num_experts", 8)
    with pytest.raises(InputError, match=r"as config.json of the base says \(8\), got 6"):
        anatomy(pool, SCOPE)
