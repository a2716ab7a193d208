from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from stand_ins import weights_of

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import buffers, plan
from sae_moo.materialization.buffers import Buffers
from sae_moo.materialization.check import check
from sae_moo.materialization.into_model import l1_norms, materialize, measured_sparsity, sparseness
from sae_moo.materialization.ops.prune import target_count
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe
from sae_moo.recipe.methods import METHODS

MATH, CODE = Expert("math"), Expert("code")


def child(a: Recipe, b: Recipe, share: float = 0.4) -> Recipe:
    return Cast(Prune(Merge("zero_aware", (a, Prune(b, 0.2)), (share, 1 - share), {"scale": 1.1}), 0.3), "float32")


def lineage(depth: int) -> Recipe:
    recipe: Recipe = Cast(MATH, "float32")
    for i in range(depth):
        recipe = child(recipe, Cast(CODE if i % 2 else Expert("law"), "float32"), 0.5 + i / 10_000)
    return recipe


@pytest.mark.parametrize("name", ["base", "math", "code", "law"])
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: Cast(r, "float32"), lambda r: Prune(r, 0.0)])
def test_an_expert_is_bit_equal(tiny, tiny_model, name, wrap):
    report = materialize(wrap(Expert(name)), tiny, tiny_model)
    for tensor, weight in weights_of(tiny, tiny_model).items():
        assert torch.equal(weight, tiny.load(name, tensor))
    assert report.sparsity == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once_to_the_models_dtype(tiny, dtype):
    model = tiny.live_model(dtype)
    materialize(Merge("linear", (MATH, CODE), (0.3, 0.7)), tiny, model)
    for name, weight in weights_of(tiny, model).items():
        expected = tiny.load("math", name) * 0.3 + tiny.load("code", name) * 0.7
        assert weight.dtype == dtype
        torch.testing.assert_close(weight, expected.to(dtype), rtol=2**-7, atol=0)
        wrong = (weight != expected.to(dtype)).float().mean()
        assert wrong < 0.01  # fused multiply-add may fall on the other side of a tie


def test_weights_per_group_reach_their_groups(tiny, tiny_model):
    rows = ((1, 0), (0, 1), (1, 0), (0, 1))
    materialize(Merge("linear", (MATH, CODE), rows), tiny, tiny_model)
    for info in tiny.tensors:
        donor = "math" if rows[info.group][0] else "code"
        assert torch.equal(tiny.parameters(tiny_model)[info.name], tiny.load(donor, info.name))


@pytest.mark.parametrize("scope", ["tensor", "group", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.6, 0.999])
def test_scopes_prune_the_exact_count_of_the_smallest(tiny, tiny_model, scope, sparsity):
    report = materialize(Prune(MATH, sparsity, scope=scope), tiny, tiny_model)
    weights = weights_of(tiny, tiny_model)
    prunable = [info for info in tiny.tensors if info.prunable]
    units: dict[object, list] = {}
    for info in prunable:
        units.setdefault({"tensor": info.name, "group": info.group, "global": 0}[scope], []).append(info)
    for members in units.values():
        original = torch.cat([tiny.load("math", info.name).flatten() for info in members])
        now = torch.cat([weights[info.name].flatten() for info in members])
        assert int((now == 0).sum()) == target_count(sparsity, len(now))
        if 0 < int((now == 0).sum()) < len(now):
            assert original[now == 0].abs().max() <= original[now != 0].abs().min()
    for info in tiny.tensors:
        if not info.prunable:
            assert torch.equal(weights[info.name], tiny.load("math", info.name))
    zeros = sum(int((weights[info.name] == 0).sum()) for info in prunable)
    assert report.sparsity == zeros / sum(info.numel for info in prunable)
    assert report.sparsity == measured_sparsity(tiny, tiny_model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("scope", "sparsity"), [("row", 0.0), ("row", 0.3), ("row", 0.99), ("2:4", 0.5), ("4:8", 0.5)])
def test_rows_and_patterns_prune_the_exact_count_of_the_smallest(tiny, dtype, scope, sparsity):
    model = tiny.live_model(dtype)
    report = materialize(Cast(Prune(Cast(MATH, dtype), sparsity, scope=scope), dtype), tiny, model)
    assert report.recipe.input.counts is None
    for info in tiny.tensors:
        now = tiny.parameters(model)[info.name]
        original = tiny.load("math", info.name).to(now.dtype)
        if not info.prunable:
            assert torch.equal(now, original)
            continue
        of = info.shape[1] if scope == "row" else int(scope[2])
        now, original = now.reshape(-1, of), original.reshape(-1, of).abs()
        gone = now == 0
        assert (gone.sum(dim=1) == round(sparsity * of)).all()
        if gone.any():
            assert (original.where(gone, 0).amax(1) <= original.where(~gone, torch.inf).amin(1)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("scope", "sparsity"),
    [("tensor", 0.0), ("tensor", 0.7), ("group", 0.5), ("global", 0.9), ("row", 0.3), ("2:4", 0.5)],
)
def test_what_is_left_is_rescaled_to_the_norm_of_the_tensor(tiny, dtype, scope, sparsity):
    """The same zeros as without; one factor for each tensor, in float32, rounded once."""
    inner = Merge("linear", (MATH, CODE), (1, 3))
    model = tiny.live_model("float32")
    materialize(inner, tiny, model)
    whole = weights_of(tiny, model)
    plain = materialize(Prune(inner, sparsity, scope=scope), tiny, model)
    pruned = weights_of(tiny, model)
    out = tiny.live_model(dtype)
    report = materialize(Cast(Prune(inner, sparsity, scope=scope, rescale=True), dtype), tiny, out)
    assert report.sparsity == plain.sparsity
    for info in tiny.tensors:
        now, before = tiny.parameters(out)[info.name], pruned[info.name]
        if not info.prunable:
            assert torch.equal(now, before.to(now.dtype))
            continue
        factor = float(torch.tensor(float(whole[info.name].double().norm()) / float(before.double().norm())))
        assert (factor == 1.0) == (sparsity == 0.0)
        assert torch.equal(now, (before * factor).to(now.dtype))


def test_a_tensor_that_loses_all_its_weights_stays_empty(tiny, tiny_model):
    flat = Merge("linear", (Expert("base"),), (0.0,), {"normalize": False})
    for scope in ("tensor", "row"):
        materialize(Prune(flat, 0.5, scope=scope, rescale=True), tiny, tiny_model)
        assert all(not tiny.parameters(tiny_model)[info.name].any() for info in tiny.tensors if info.prunable)


@pytest.mark.parametrize(("scope", "sparsity"), [("row", 0.3), ("2:4", 0.5)])
def test_stacked_matrices_have_no_rows(tiny, tiny_model, scope, sparsity):
    pool = ExpertPool(tiny.checkpoints)
    stacked = [
        dataclasses.replace(t, shape=(2, 8, 24)) if t.name.endswith("1.mlp.down_proj.weight") else t
        for t in tiny.tensors
    ]
    pool.tensors = tuple(stacked)
    with pytest.raises(InputError, match=r"needs matrices, model.layers.1.mlp.down_proj.weight has shape \(2, 8, 24\)"):
        check(Prune(MATH, sparsity, scope=scope), pool)
    check(Prune(MATH, (0, sparsity, 0, 0), scope=scope), pool)
    check(Prune(MATH, sparsity), pool)


def test_patterns_by_group(tiny, tiny_model):
    report = materialize(Prune(MATH, (0, 0.5, 0, 0), scope="2:4"), tiny, tiny_model)
    assert list(report.group_sparsity.values()) == [0, 0.5, 0, 0]
    report = materialize(Prune(MATH, (0, 0.25, 0.5, 0), scope="row"), tiny, tiny_model)
    assert list(report.group_sparsity.values()) == [0, 0.25, 0.5, 0]


def test_sparsity_per_group(tiny, tiny_model):
    report = materialize(Prune(MATH, (0, 0.2, 0.7, 0)), tiny, tiny_model)
    assert list(report.group_sparsity) == list(tiny.groups)
    assert list(report.group_sparsity.values()) == pytest.approx([0, 0.2, 0.7, 0], abs=0.002)


@pytest.mark.parametrize("scope", ["tensor", "row", "2:4"])
def test_sparsity_per_tensor(tiny, tiny_model, scope):
    """Each tensor is what it is if one number is asked of all; zeros asked leave it alone."""
    ratios = {info.name: (0.5, 0.0, 0.5 if scope == "2:4" else 0.25)[i % 3] for i, info in enumerate(tiny.tensors)}
    asked = Cast(Prune(MATH, tuple(ratios.values()), scope=scope), "float32")
    assert Recipe.from_json(asked.to_json()) == asked
    materialize(asked, tiny, tiny_model)
    found = weights_of(tiny, tiny_model)
    for ratio in sorted(set(ratios.values())):
        materialize(Prune(MATH, ratio, scope=scope) if ratio else MATH, tiny, tiny_model)
        alike = weights_of(tiny, tiny_model)
        assert all(torch.equal(found[name], alike[name]) for name, own in ratios.items() if own == ratio)
    with pytest.raises(
        InputError, match=f"expected 4 sparsities, one per group, or {len(tiny.tensors)}, one per tensor"
    ):
        check(Prune(MATH, (0.5,) * 5, scope=scope), tiny)
    with pytest.raises(InputError, match=f"expected 4 sparsities, one per group, got {len(tiny.tensors)}"):
        check(Prune(MATH, (0.5,) * len(tiny.tensors), scope="group"), tiny)


@pytest.mark.parametrize("scope", ["group", "global"])
def test_resolved_recipes_give_the_same_weights_in_one_pass(tiny, tiny_model, scope):
    asked = Cast(Prune(Merge("linear", (Prune(MATH, 0.3, scope=scope), CODE), (1, 1)), 0.5, scope=scope), "float32")
    report = materialize(asked, tiny, tiny_model)
    first = weights_of(tiny, tiny_model)
    assert report.recipe != asked
    assert resolve(report.recipe, tiny) is report.recipe
    again = materialize(report.recipe, tiny, tiny_model)
    assert again.recipe is report.recipe
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(tiny, tiny_model).items())


def test_ties_across_tensors_are_broken_in_order(tiny, tiny_model):
    """All weights equal in size: the count must still be exact, and the first tensors lose theirs."""
    flat = Merge("linear", (Expert("base"),), (0.0,), {"normalize": False})  # all zeros
    report = materialize(Prune(flat, 0.5, scope="global"), tiny, tiny_model)
    assert report.sparsity == 1.0
    counts = report.recipe.counts
    sizes = [info.numel for info in tiny.tensors if info.prunable]
    assert sum(counts) == target_count(0.5, sum(sizes))
    full = [count == size for count, size in zip(counts, sizes, strict=True)]
    assert full == sorted(full, reverse=True)


def test_a_lineage_of_500_materializes(tiny, tiny_model):
    report = materialize(lineage(500), tiny, tiny_model)
    assert 0.25 < report.sparsity < 0.35


def test_the_cache_never_changes_a_bit(tiny, tiny_model):
    cache = WeightCache(1 << 30)
    recipe: Recipe = Cast(MATH, "float32")
    for i in range(6):
        recipe = child(recipe, Cast(CODE if i % 2 else Expert("law"), "float32"), 0.3 + i / 50)
        cached = materialize(recipe, tiny, tiny_model, cache)
        with_cache = weights_of(tiny, tiny_model)
        plain = materialize(recipe, tiny, tiny_model)
        assert all(torch.equal(w, with_cache[name]) for name, w in weights_of(tiny, tiny_model).items())
        assert dataclasses.replace(cached, seconds=0) == dataclasses.replace(plain, seconds=0)
    assert len(cache) == 6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_cache_never_changes_a_bit_in_half_precision(tiny, dtype):
    model, cache = tiny.live_model(dtype), WeightCache(1 << 30)
    parent = Cast(Merge("linear", (MATH, CODE), (0.3, 0.7)), dtype)
    materialize(parent, tiny, model, cache)
    youngest = Cast(Prune(Merge("zero_aware", (parent, Cast(CODE, dtype)), (0.5, 0.5)), 0.2), dtype)
    materialize(youngest, tiny, model, cache)
    first = weights_of(tiny, model)
    materialize(youngest, tiny, model)
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(tiny, model).items())


def test_the_cache_is_bounded_and_drops_the_least_recently_used(tiny, tiny_model):
    size = sum(parameter.nbytes for parameter in tiny.parameters(tiny_model).values())
    cache = WeightCache(2 * size + 1)
    first, second, third = (Cast(Prune(Expert(name), 0.1), "float32") for name in ("math", "code", "law"))
    for recipe in (first, second):
        materialize(recipe, tiny, tiny_model, cache)
    materialize(first, tiny, tiny_model, cache)
    materialize(third, tiny, tiny_model, cache)
    assert (first in cache, second in cache, third in cache) == (True, False, True)
    assert cache.bytes == 2 * size
    tight = WeightCache(size - 1)
    materialize(first, tiny, tiny_model, tight)
    assert (len(tight), tight.bytes) == (0, 0)


def test_parents_that_were_dropped_are_held_again(tiny, tiny_model):
    size = sum(parameter.nbytes for parameter in tiny.parameters(tiny_model).values())
    parent = child(Cast(MATH, "float32"), Cast(CODE, "float32"))
    cache = WeightCache(4 * size)
    youngest = child(parent, Cast(CODE, "float32"), 0.7)
    materialize(youngest, tiny, tiny_model, cache)
    with_cache = weights_of(tiny, tiny_model)
    assert list(cache) == [parent, youngest], "experts are read from their files"
    materialize(youngest, tiny, tiny_model)
    assert all(torch.equal(with_cache[name], weight) for name, weight in weights_of(tiny, tiny_model).items())
    materialize(parent, tiny, tiny_model)
    assert all(torch.equal(cache.get(parent)[name], weight) for name, weight in weights_of(tiny, tiny_model).items())


def test_memory_is_a_few_tensors_at_any_depth(tiny, tiny_model, monkeypatch):
    used = most = 0
    take, give = Buffers.take, Buffers.give

    def taking(self, numel, dtype):
        nonlocal used, most
        used += 1
        most = max(most, used)
        return take(self, numel, dtype)

    def giving(self, buffer):
        nonlocal used
        used -= 1
        give(self, buffer)

    monkeypatch.setattr(Buffers, "take", taking)
    monkeypatch.setattr(Buffers, "give", giving)
    peaks = {}
    for depth in (2, 30, 100):
        most = 0
        materialize(lineage(depth), tiny, tiny_model)
        assert used == 0, "every buffer is given back"
        peaks[depth] = most
    assert peaks == {2: 2, 30: 5, 100: 5}, "two pruned experts that all share, a parent and its child, small ones apart"


def wide(width: int, generations: int) -> Recipe:
    """A lineage in which every candidate is a parent of two of the next generation: none can be let go early."""
    layer: list[Recipe] = [Cast(Merge("linear", (MATH, CODE), (1 + i, 2)), "float32") for i in range(width)]
    for _ in range(generations):
        pairs = zip(layer, layer[1:] + layer[:1], strict=True)
        layer = [Cast(Merge("linear", pair, (0.5, 0.5)), "float32") for pair in pairs]
    return Merge("linear", tuple(layer), (1.0,) * width)


def test_memory_is_bounded_at_any_width_and_the_rest_lies_in_files(tiny, tiny_model, monkeypatch):
    most = files = 0
    take, in_file = Buffers.take, buffers._in_file

    def taking(self, numel, dtype):
        nonlocal most
        taken = take(self, numel, dtype)
        most = max(most, self.bytes)
        return taken

    def counting(size):
        nonlocal files
        files += 1
        return in_file(size)

    monkeypatch.setattr(Buffers, "take", taking)
    monkeypatch.setattr(buffers, "_in_file", counting)
    monkeypatch.setattr(plan, "SMALL", 0)
    recipe = wide(12, 3)
    materialize(recipe, tiny, tiny_model)
    bounded = weights_of(tiny, tiny_model)
    largest = 4 * max(info.numel for info in tiny.tensors)
    assert largest <= most <= 1.5 * largest
    assert files > 5
    monkeypatch.setattr(plan, "ROOM", 1000)
    materialize(recipe, tiny, tiny_model)
    assert all(torch.equal(bounded[name], weight) for name, weight in weights_of(tiny, tiny_model).items())
    assert most > 5 * largest


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Expert("maths"), r"no expert named 'maths' \(did you mean 'math'\?\); there are base, math, code, law"),
        (Merge("linaer", (MATH,), (1,)), r"one of linear, slerp, .*; got 'linaer' \(did you mean 'linear'\?\)"),
        (Merge("slerp", (MATH,), (1,)), "slerp: expected 2 inputs, got 1"),
        (Merge("linear", (MATH, CODE), (1, -1)), "linear: expected weights whose sum is not 0"),
        (Merge("zero_aware", (MATH, CODE), (1, -0.5)), "zero_aware: expected weights of at least 0"),
        (
            Merge("linear", (MATH,), ((1,), (1,))),
            "linear: expected 4 rows of weights, one per group, or 20, one per tensor, got 2",
        ),
        (
            Merge("linear", (MATH,), (1,), {"normalise": True}),
            r"linear: no setting 'normalise' \(did you mean 'normalize'\?\); there are: normalize",
        ),
        (Merge("linear", (MATH,), (1,), {"normalize": 1.0}), "linear: normalize: expected bool, got 1.0"),
        (
            Prune(MATH, 0.6, scope="2:5"),
            r"scope '2:5' needs a number of inputs that 5 divides; model.layers.0.mlp.down_proj.weight of shape "
            r"\(16, 24\) has 24",
        ),
        (
            Merge("ties", (MATH, CODE), (1, 1), {"scale": (1.0, 2.0)}),
            r"ties: scale: expected one number for all inputs",
        ),
        (Merge("ties", (MATH,), (1,), {"density": 1.5}), r"ties: density: expected a share in \[0, 1\], got 1.5"),
        (Merge("ties", (MATH,), (1,), {"rescale": "l3"}), "ties: rescale: expected one of none, l1, density, got 'l3'"),
        (Merge("della", (MATH,), (1,), {"density": ((0.5,), (0.5,), (0.1,), (0.5,))}), r"in \(0, 1\), got 0.1, 0.15"),
        (Merge("karcher", (MATH, CODE), (1, 1), {"tol": 0.0}), "karcher: tol: expected a number above 0, got 0.0"),
        (
            Merge("karcher", (MATH, CODE), (1, 1), {"max_iter": 2.5}),
            "karcher: max_iter: expected a whole number, got 2.5",
        ),
        (Merge("dare_ties", (MATH,), (1,), {"seed": 0.7}), "dare_ties: seed: expected a whole number, got 0.7"),
        (Merge("dare_ties", (MATH,), (1,), {"seed": 10**30}), "dare_ties: seed: expected a smaller number, got 1000"),
        (Merge("linear", (MATH, CODE), (1e308, 1e308)), "linear: expected weights that float32 can hold"),
        (Merge("model_stock", (MATH,), (1,)), "model_stock: expected at least 2 inputs, got 1"),
        (Merge("arcee_fusion", (MATH, CODE), (1, 1)), "arcee_fusion: expected 1 inputs, got 2"),
        (Prune(MATH, (0.1, 0.2)), "expected 4 sparsities, one per group, or 20, one per tensor, got 2"),
        (Prune(MATH, (0.1, 0.2, 0.1, 0.1), scope="global"), "scope 'global' takes one sparsity"),
        (
            Prune(MATH, 0.1, "wnda"),
            r"expected a pruning criterion, one of magnitude, wanda; got 'wnda' \(did you mean 'wanda'\?\)",
        ),
        (Prune(MATH, 0.1, counts=(10**6,) * 14), "counts of at most the tensor's size 384, got 1000000"),
        (Prune(MATH, 0.1, counts=(1, 2)), "expected 14 counts, one per tensor, got 2"),
    ],
)
def test_recipes_that_do_not_fit_change_nothing(tiny, tiny_model, recipe, message):
    materialize(Expert("law"), tiny, tiny_model)
    before = weights_of(tiny, tiny_model)
    with pytest.raises(InputError, match=message):
        materialize(Merge("linear", (recipe, MATH), (1, 1)), tiny, tiny_model)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(tiny, tiny_model).items())


@pytest.mark.parametrize("method", METHODS)
def test_the_order_in_which_experts_are_listed_changes_no_bit(tiny, tiny_model, method):
    names = ("math", "code", "law")[: METHODS[method].inputs[1] or 3]
    weights, density = (0.5, 0.3, 0.9)[: len(names)], (0.3, 0.5, 0.8)[: len(names)]
    found = []
    for order in itertools.permutations(range(len(names))):
        params = {"density": tuple(density[i] for i in order)} if method in ("ties", "dare_ties", "breadcrumbs") else {}
        params |= {"density": 0.5} if method.startswith("della") else {}
        merged = Merge(method, tuple(Expert(names[i]) for i in order), tuple(weights[i] for i in order), params)
        materialize(Cast(merged, "float32"), tiny, tiny_model)
        found.append(weights_of(tiny, tiny_model))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], weight) for name, weight in other.items())


def test_rows_per_tensor_and_settings_per_group(tiny, tiny_model):
    rows = tuple((1.0, 0.0) if i % 2 else (0.0, 1.0) for i in range(len(tiny.tensors)))
    materialize(Merge("linear", (MATH, CODE), rows), tiny, tiny_model)
    for i, info in enumerate(tiny.tensors):
        donor = "math" if i % 2 else "code"
        assert torch.equal(tiny.parameters(tiny_model)[info.name], tiny.load(donor, info.name))
    scales = tuple((float(g),) for g in range(len(tiny.groups)))
    materialize(Merge("task_arithmetic", (MATH,), (1.0,), {"scale": scales}), tiny, tiny_model)
    for info in tiny.tensors:
        base, math = tiny.load("base", info.name), tiny.load("math", info.name)
        wanted = base + info.group * (math - base)
        torch.testing.assert_close(tiny.parameters(tiny_model)[info.name], wanted, rtol=1e-6, atol=1e-7)


def test_rankmean_weighs_by_the_rank_of_a_tensors_change_within_its_model(tiny, tiny_model):
    asked = Merge("rankmean", (MATH, CODE), (1.0, 1.0))
    report = materialize(asked, tiny, tiny_model)
    inside = [info for info in tiny.tensors if tiny.groups[info.group].startswith("block.")]
    ranks = {}
    for name in ("math", "code"):
        change = [float((tiny.load(name, i.name) - tiny.load("base", i.name)).abs().double().sum()) for i in inside]
        order = sorted(range(len(inside)), key=lambda i: change[i])
        ranks |= {(name, inside[i].name): place + 1 for place, i in enumerate(order)}
    for info in tiny.tensors:
        a, b = (ranks.get((name, info.name), 1) for name in ("math", "code"))
        wanted = (a * tiny.load("math", info.name) + b * tiny.load("code", info.name)) / (a + b)
        torch.testing.assert_close(tiny.parameters(tiny_model)[info.name], wanted)
    first = weights_of(tiny, tiny_model)
    assert resolve(report.recipe, tiny) is report.recipe
    materialize(report.recipe, tiny, tiny_model)
    assert all(torch.equal(first[name], weight) for name, weight in weights_of(tiny, tiny_model).items())
    assert Recipe.from_json(report.recipe.to_json()) == report.recipe


def test_adjacent_tensors_share_one_split_point(tiny, tiny_model):
    """The point is a share of the whole model: tensors before it are mixed one way, those behind it the other."""
    materialize(Merge("split_slerp", (MATH, CODE), (1.0, 0.0), {"split": 0.4}), tiny, tiny_model)
    border, offset = round(0.4 * sum(info.numel for info in tiny.tensors)), 0
    for info in tiny.tensors:
        flat = tiny.parameters(tiny_model)[info.name].flatten()
        here = min(max(border - offset, 0), info.numel)
        assert torch.equal(flat[:here], tiny.load("math", info.name).flatten()[:here])
        assert torch.equal(flat[here:], tiny.load("code", info.name).flatten()[here:])
        offset += info.numel


def test_a_cast_to_another_dtype_than_the_live_models_is_not_mistaken_for_its_weights(tiny):
    parent = Cast(Merge("linear", (MATH, CODE), (0.3, 0.7)), "float32")
    kid = Cast(Merge("linear", (parent, Expert("law")), (0.5, 0.5)), "float32")
    model, cache = tiny.live_model(torch.bfloat16), WeightCache(1 << 30)
    materialize(kid, tiny, model)
    plain = weights_of(tiny, model)
    materialize(parent, tiny, model, cache)
    materialize(kid, tiny, model, cache)
    assert all(torch.equal(plain[name], weight) for name, weight in weights_of(tiny, model).items())


def test_a_cast_to_another_dtype_than_the_live_models_rounds_before_it(tiny):
    model = tiny.live_model(torch.bfloat16)
    merged = Merge("linear", (MATH, CODE), (0.3, 0.7))
    materialize(Cast(merged, "float16"), tiny, model)
    work, once = plan.Plan(merged, tiny, "cpu", None), 0
    for info in tiny.tensors:
        exact, weight = work.tensor(info), tiny.parameters(model)[info.name]
        assert torch.equal(weight, exact.half().bfloat16())
        once += int((weight != exact.bfloat16()).sum())
    assert once > 0


def test_one_input_listed_twice_may_change_places_too(tiny, tiny_model):
    found = []
    for weights in ((0.3, 0.5, 0.2), (0.2, 0.5, 0.3)):
        inputs = (MATH, CODE, MATH)
        materialize(Merge("linear", inputs, weights), tiny, tiny_model)
        found.append(weights_of(tiny, tiny_model))
    assert all(torch.equal(found[0][name], weight) for name, weight in found[1].items())


def test_an_overflow_is_no_sparse_model(tiny, tiny_model):
    huge = Cast(Merge("linear", (MATH,), (1e9,), {"normalize": False}), "float16")
    nothing = Merge("linear", (huge, huge), (1.0, -1.0), {"normalize": False})  # infinity less infinity
    with pytest.raises(WeightsError, match="weights are NaN: no order among"):
        materialize(Prune(nothing, 0.999), tiny, tiny_model)
    report = materialize(Cast(nothing, "float32"), tiny, tiny_model)
    assert report.sparsity < 0.01
    assert any(weight.isnan().any() for weight in weights_of(tiny, tiny_model).values())


def test_sparseness_by_norms(tiny, tiny_model):
    """Both measures against their formulas in float64, whole and per group."""
    materialize(Prune(Expert("math"), 0.4), tiny, tiny_model)
    weights = weights_of(tiny, tiny_model)
    of = {i: [info for info in tiny.tensors if info.prunable and info.group == i] for i in range(len(tiny.groups))}
    of[-1] = [info for infos in of.values() for info in infos]
    norms = l1_norms(tiny, "base")
    for measure in ("l1", "hoyer"):
        found = sparseness(tiny, tiny_model, measure, norms if measure == "l1" else {})
        assert len(found) == 1 + len(tiny.groups)
        for i, infos in of.items():
            flat = (
                torch.cat([weights[info.name].flatten() for info in infos]).double()
                if infos
                else torch.empty(0).double()
            )
            before = torch.cat([tiny.load("base", info.name).flatten() for info in infos]).double() if infos else None
            n = flat.numel()
            if n == 0:
                expected = 0.0
            elif measure == "l1":
                expected = float(1 - flat.abs().sum() / before.abs().sum())
            else:
                expected = float((n**0.5 - flat.abs().sum() / (flat**2).sum() ** 0.5) / (n**0.5 - 1))
            assert found[i + 1] == pytest.approx(expected, abs=1e-6)


def test_sparseness_at_its_ends(tiny, tiny_model):
    materialize(Expert("base"), tiny, tiny_model)
    assert sparseness(tiny, tiny_model, "l1", l1_norms(tiny, "base"))[0] == pytest.approx(0.0, abs=1e-8)
    prunable = [info for info in tiny.tensors if info.prunable]
    parameters = tiny.parameters(tiny_model)
    with torch.no_grad():
        for info in prunable:
            parameters[info.name].fill_(0.5)
        assert sparseness(tiny, tiny_model, "hoyer", {})[0] == pytest.approx(0.0, abs=1e-8)
        for info in prunable:
            parameters[info.name].zero_()
        assert sparseness(tiny, tiny_model, "hoyer", {})[0] == 0.0
        parameters[prunable[0].name].view(-1)[3] = -2.0
        assert sparseness(tiny, tiny_model, "hoyer", {})[0] == pytest.approx(1.0)
