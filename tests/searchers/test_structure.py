"""What of a candidate goes whole: how it is drawn, inherited, written into recipes and read back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pymoo.core.individual import Individual

from sae_moo.objectives import Evaluation
from sae_moo.recipe import BLOCKS, MOE_EXPERTS, Cast, Expert, Prune
from sae_moo.recipe.structure import chain, removed_blocks
from sae_moo.searchers.breeding import Ablation, Operators
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.individuals import Origin
from sae_moo.searchers.operators import LineageSampling, PruneMergeMutation, ZeroAwareCrossover
from sae_moo.searchers.space import CoefficientSpace
from sae_moo.searchers.structure import Structure, Structures, built, structure_of, whole

COUNT = 8  # blocks, between embeddings and head
ALL = (BLOCKS, "neurons", "heads")
GROUND = Ground(
    ("math", "code"),
    (False, *[True] * COUNT, False),
    tensors=((0, 0), *((1 + i // 3, (100, 300, 0)[i % 3]) for i in range(3 * COUNT)), (9, 0)),
    structured=ALL,
    blocks=tuple(range(1, COUNT + 1)),
    units=(("neurons", 20), ("heads", 4)),
)
MATH = Expert("math")
STILL = Operators(
    restructure=0, edit=0, keep=1, inherit=1, shape=1, shift=0, slope=0, tilt=0, noise=0, switch=0, drop=0
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def structure(removed=(2, 3), neurons=0.25, level=0.5) -> Structure:
    shares = {} if neurons is None else {"neurons": np.full(10, neurons)}
    return Structure(frozenset(removed), shares, None if level is None else np.full(10, level))


def parent(of: Structure, ground: Ground = GROUND) -> Evaluation:
    recipe = ground.candidate(built(MATH, of, ground))
    return Evaluation(recipe, {"a": (1.0,)}, 0.5, (0.5,) * ground.groups)


def test_what_goes_whole_is_pruned_first_and_nothing_is_asked_of_blocks_that_are_gone():
    recipe = built(MATH, structure(), GROUND)
    blocks, neurons, scattered = chain(Cast(recipe, "float32"))
    rows = tuple((0,) if block in (2, 3) else () for block in range(COUNT))
    assert blocks == Prune(MATH, 2 / COUNT, scope=BLOCKS, units=rows)
    assert neurons.scope == "neurons"
    assert neurons.sparsity == (0, 0.25, 0.25, 0, 0, 0.25, 0.25, 0.25, 0.25, 0)
    assert scattered.scope == "tensor"
    assert scattered.sparsity == (0, 0.5, 0.5, 0, 0, 0.5, 0.5, 0.5, 0.5, 0)


@pytest.mark.parametrize("empty", [Structure(), Structure(levels=np.zeros(10)), structure((), 0.01, 0.0)])
def test_nothing_is_pruned_of_what_loses_nothing(empty):
    assert built(MATH, empty, GROUND) is MATH


@pytest.mark.parametrize("scope", ["tensor", "row", "group", "global", "2:4", None])
@pytest.mark.parametrize("granularity", ["block", "model"])
@pytest.mark.parametrize("removed", [(), (0,), (2, 3), (1, 5, 7)])
def test_what_a_recipe_says_is_what_it_was_built_of(scope, granularity, removed):
    ground = replace(GROUND, scope=scope, granularity=granularity)
    given = structure(removed, level=None if scope is None else 0.5)
    again = structure_of(ground.candidate(built(MATH, given, ground)), ground)
    inner = slice(1, COUNT + 1)
    assert again.removed == frozenset(removed)
    np.testing.assert_allclose(again.shares["neurons"][inner], 0.25)
    if scope is None:
        assert again.levels is None
    else:
        np.testing.assert_allclose(again.levels[inner], 0.5, atol=1e-3)
    assert again.offsets is None


def test_a_global_sparsity_counts_removed_blocks():
    ground = replace(GROUND, scope="global")
    (_, scattered) = chain(Cast(built(MATH, structure((0, 1), None, 0.5), ground), "float32"))
    assert scattered.sparsity == pytest.approx(0.25 + 0.75 * 0.5)


def test_sparsities_by_tensor_are_written_and_read_back():
    offsets = np.zeros(len(GROUND.tensors))
    offsets[4:6] = (0.3, -0.1)  # of block 1
    given = replace(structure((0,), None, 0.5), offsets=offsets)
    recipe = GROUND.candidate(built(MATH, given, GROUND))
    (_, scattered) = chain(recipe)
    assert scattered.sparsity[:7] == (0, 0, 0, 0, 0.8, 0.4, 0)
    again = structure_of(recipe, GROUND)
    np.testing.assert_allclose(again.levels[1:9], 0.5)
    np.testing.assert_allclose(again.offsets[4:6], (0.3, -0.1))


@pytest.mark.parametrize("units", [1, 2, 3, 4, 7, 64, 160, 11008])
def test_shares_are_whole_numbers_of_units_and_one_stays(units):
    for asked in np.linspace(0, 1, 23):
        (share,) = whole(np.array([asked]), units)
        number = round(share * units)
        assert abs(share - number / units) <= 1e-4
        assert 0 <= number < units or number == 0 == units - 1


def test_a_child_has_each_part_of_a_parent_where_nothing_is_changed():
    given = structure()
    child = Structures(GROUND, STILL).child([given, structure((6,), 0.4, 0.2)], 0.5, 0.9, rng())
    assert child.removed == given.removed
    np.testing.assert_allclose(child.shares["neurons"][1:9], 0.25)
    assert child.shares.keys() == {"neurons"}, "what no parent lacks is not removed"
    np.testing.assert_allclose(child.levels[1:9], 0.5)


def test_parts_are_inherited_apart():
    parents = [structure(), structure((5, 6), None, 0.0)]
    drawn = Structures(GROUND, STILL.model_copy(update={"keep": 0.3}))
    children = [drawn.child(parents, 0.5, 0.9, rng(seed)) for seed in range(300)]
    kinds = {(child.removed == parents[0].removed, "neurons" in child.shares) for child in children}
    assert len(kinds) == 4


def settled(**settings) -> Structures:
    return Structures(replace(GROUND, protected=settings.pop("protected", (0, 0))), Operators(**settings))


@pytest.mark.parametrize("protected", [(0, 0), (1, 1), (3, 0), (0, 6), (7, 0)])
def test_protected_blocks_stay_and_half_of_all_at_most_go(protected):
    drawn = settled(restructure=0.3, remove=1, edit=1, keep=0, protected=protected)
    parents = [structure((0, 1, 2, 3)), structure((4, 5, 6, 7))]  # made where nothing was protected
    seen = set()
    for seed in range(300):
        removed = drawn.child(parents, 0.5, 0.5, rng(seed)).removed
        assert removed <= set(range(protected[0], COUNT - protected[1]))
        assert len(removed) <= COUNT // 2
        seen |= removed
    assert seen == set(range(protected[0], COUNT - protected[1])), "every other block is removed at times"


def test_new_draws_are_mostly_contiguous_and_of_few_blocks():
    drawn = settled(restructure=1, remove=1, contiguous=0.7)
    sets = [drawn.child([], 0.5, 0.5, rng(seed)).removed for seed in range(600)]
    stretch = [max(each) - min(each) + 1 == len(each) for each in sets if len(each) > 1]
    assert np.mean(stretch) == pytest.approx(0.7 + 0.3 * 0.2, abs=0.08)  # single ones happen to touch, too
    number = [len(each) for each in sets]
    assert set(number) == {1, 2, 3, 4}
    assert number.count(1) > number.count(4)
    alone = settled(restructure=1, remove=0)
    assert not any(alone.child([], 0.5, 0.5, rng(seed)).removed for seed in range(20))


def test_removed_blocks_are_edited_one_more_one_less_one_further_or_anew():
    drawn = settled(restructure=0, edit=1, keep=1, contiguous=1)
    before = {2, 3}
    after = {drawn.child([structure(before)], 0.5, 0.5, rng(seed)).removed for seed in range(400)}
    assert {frozenset(each) for each in ((2,), (3,), (1, 2, 3), (2, 3, 4), (1, 2), (3, 4))} <= after
    assert drawn.child([structure(())], 0.5, 0.5, rng()).removed, "nothing removed: one more, or anew"


def test_a_level_switch_keeps_the_zeros_of_the_first_parent():
    ground = replace(GROUND, tensors=())
    level = np.array([0, 0.5, 0.6, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2, 0])
    parents = [Structure(frozenset({1}), {"neurons": np.full(10, 0.25)}, level), structure((), 0.4, 0.1)]
    drawn = Structures(ground, STILL.model_copy(update={"switch": 1.0}))
    here = np.array([False, True, False, *[True] * 6, False])
    moved = []
    for seed in range(50):
        child = drawn.child(parents, 0.5, 0.9, rng(seed))
        assert child.levels[here].sum() == pytest.approx(level[here].sum(), abs=1e-3)
        shares = whole(child.shares["neurons"], 20)[here]
        assert shares.sum() == pytest.approx(0.25 * 7)
        moved.append(((child.levels != level).sum(), len(set(shares))))
    most = np.max(moved, axis=0)
    assert most[0] <= 6
    assert np.mean([levels >= 2 and shares > 1 for levels, shares in moved]) > 0.9  # two may undo each other


def test_levels_switch_between_the_tensors_of_a_block():
    drawn = Structures(GROUND, STILL.model_copy(update={"switch": 1.0, "tensors": True}))
    place, sizes = np.array(GROUND.tensors).T
    inside = 0
    for seed in range(60):
        child = drawn.child([structure((2,), None, 0.5)], 0.5, 0.9, rng(seed))
        if child.offsets is None:
            continue
        inside += child.offsets.any()
        np.testing.assert_allclose(np.bincount(place, sizes * child.offsets), 0, atol=0.1)
        assert len(set(place[child.offsets != 0])) <= 1
        assert not child.offsets[sizes == 0].any()
        again = drawn.child([child], 0.5, 0.9, rng(seed + 1000))
        assert again.offsets is not None, "offsets are inherited"
    assert 15 < inside < 45


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_one_scope_of_scattered_zeros_switches_levels_too(scope):
    ground = replace(GROUND, structured=(), units=(), scope=scope)
    own = Structure(levels=np.array([0, 0.5, 0.6, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2, 0]))
    origin = Origin("x", (parent(own, ground),))
    mutation = PruneMergeMutation(ground, 0.8, STILL.model_copy(update={"switch": 1.0}))
    mutated = mutation.mutated(Cast(MATH, "float32"), origin, 0.8, rng())
    assert mutated.input.scope == scope
    asked = np.array(mutated.input.sparsity)
    assert asked @ ground.sizes == pytest.approx(own.levels @ ground.sizes, rel=1e-3)
    assert 2 <= (asked != own.levels).sum() <= 6


def test_patterns_switch_whole_blocks():
    ground = replace(GROUND, scope="2:4", structured=(), units=())
    own = Structure(levels=np.array([0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0]))
    mutation = PruneMergeMutation(ground, 0.8, STILL.model_copy(update={"switch": 1.0}))
    origin = Origin("x", (parent(own, ground),))
    asked = [mutation.mutated(Cast(MATH, "float32"), origin, 0.8, rng(seed)).input.sparsity for seed in range(20)]
    assert all(sum(each) == 2.0 for each in asked)
    assert len(set(asked)) > 10


def test_mutation_prunes_by_what_parents_lack():
    mutation = PruneMergeMutation(GROUND, 0.5, STILL)
    mutated = mutation.mutated(Cast(MATH, "float32"), Origin("x", (parent(structure()),)), 0.5, rng())
    assert mutated == parent(structure()).recipe


@pytest.mark.parametrize("ground", [GROUND, replace(GROUND, structured=(), units=())])
def test_grafted_children_are_pruned_as_their_second_parent_is(ground):
    first, second = structure((), None, 0.3), structure(() if not ground.structured else (2, 3), None, 0.6)
    parents = (parent(first, ground), parent(second, ground))
    grafting = PruneMergeMutation(ground, 0.5, STILL.model_copy(update={"graft": 0.5}))
    own = rng()
    born = [grafting.mutated(Cast(MATH, "float32"), Origin("x", parents), 0.5, own) for _ in range(60)]
    assert np.mean([each == parents[1].recipe for each in born]) == pytest.approx(0.5, abs=0.2)
    alone = [grafting.mutated(Cast(MATH, "float32"), Origin("x", parents[:1]), 0.5, own) for _ in range(9)]
    assert len({*alone}) == 1
    assert parents[1].recipe not in alone


def test_a_first_population_has_members_of_each_scope_alone_and_of_all():
    population = LineageSampling(GROUND).do(None, 40, random_state=rng())
    kinds = {tuple(node.scope for node in chain(each.X[0])) for each in population}
    assert {(BLOCKS,), ("neurons",), ("heads",), ("tensor",), (BLOCKS, "neurons", "heads", "tensor"), ()} <= kinds
    rungs = LineageSampling(GROUND, 0.6, ablation=Ablation(ladder=3)).do(None, 12, random_state=rng())
    assert [each.get("origin").operator for each in rungs][7:] == [
        "task arithmetic",
        *["pruned average"] * 3,
        "random merge",
    ]
    only = LineageSampling(replace(GROUND, structured=(BLOCKS,), units=(), scope=None)).do(
        None, 20, random_state=rng(1)
    )
    assert {tuple(node.scope for node in chain(each.X[0])) for each in only} == {(BLOCKS,), ()}


def test_draws_depend_on_the_generator_alone():
    parents = [structure(), structure((6,), None, 0.2)]
    drawn = settled(switch=0.3, tensors=True)

    def recipes(seed):
        own = rng(seed)
        return [built(MATH, drawn.child(parents, 0.5, 0.4, own), drawn.ground) for _ in range(30)]

    assert recipes(3) == recipes(3) != recipes(4)


def test_vectors_say_how_many_blocks_go_and_where():
    space = CoefficientSpace(replace(GROUND, protected=(1, 1)))
    assert space.n_var == 10 * 2 + COUNT + 2 + 2
    recipe = space.decode(space.encode(np.ones(2), 0.3, (0.25, 0.5, 0.25, 0.0)))
    blocks, neurons, heads, scattered = chain(recipe)
    assert removed_blocks(recipe) == {1, 2}
    assert blocks.scope == BLOCKS
    assert (neurons.sparsity[1], neurons.sparsity[2]) == (0.25, 0)
    assert heads.sparsity[1] == 0.5
    assert scattered.sparsity[1] == 0.3
    assert removed_blocks(space.decode(space.encode(np.ones(2), 0.3, (0, 0, 0.25, 1.0)))) == {5, 6}
    low, high = space.bounds
    for seed in range(40):
        x = space.random(rng(seed), 0.6)
        assert (low <= x).all()
        assert (x <= high).all()
        assert removed_blocks(space.decode(x)) <= set(range(1, 7))
    assert len({removed_blocks(space.decode(space.random(rng(seed), 0.6))) for seed in range(40)}) > 8


def test_vectors_of_whole_parts_alone_and_without_pruning():
    bare = CoefficientSpace(replace(GROUND, scope=None, structured=(BLOCKS,), units=()))
    assert bare.n_var == 20 + 2
    assert [node.scope for node in chain(bare.decode(bare.encode(np.ones(2), 0.3, (0.25, 0.0))))] == [BLOCKS]
    dense = CoefficientSpace(replace(GROUND, most=0.0))
    assert dense.n_var == 20
    assert chain(dense.decode(dense.encode(np.ones(2)))) == ()


def test_dropped_experts_are_inherited_where_they_were_dropped_and_taken_back():
    ground = replace(GROUND, structured=())
    rows = np.tile((0.5, 0.8), (10, 1))
    rows[3:5, 1] = 0.0
    first = Cast(ground.task_arithmetic(rows), "float32")
    pair = []
    for recipe in (first, Cast(ground.task_arithmetic(np.tile((0.4, 0.2), (10, 1))), "float32")):
        each = Individual(X=np.array([recipe], dtype=object))
        each.set("evaluation", Evaluation(recipe, {"a": (1.0,)}, 0.0, (0.0,) * 10))
        pair.append(each)

    def weights(drop, count=200):
        crossover = ZeroAwareCrossover(ground, Operators(drop=drop))
        children = crossover.do(None, [pair] * count, random_state=rng())
        return np.array([child.X[0].input.weights for child in children])

    kept = weights(1e-9)
    assert (kept[:, 3:5, 1] == 0).all()
    assert (kept[:, [0, 1, 2, 5, 6, 7, 8, 9], 1] != 0).all(), "what is moved is not dropped"
    drawn = weights(1.0)
    assert (drawn[:, 3:5, 1] != 0).any()
    assert (drawn[:, 1:9] == 0).any(axis=(0,)).all(), "every expert is dropped in every block at times"
    assert (drawn[:, [0, 9]] != 0).all(), "what is no block keeps its experts"
    assert (weights(0.0)[:, 3:5, 1] != 0).mean() > 0.4, "off: a zero is a number like any other"


def test_all_mixtures_lose_as_many_experts_and_keep_what_routers_choose():
    ground = replace(GROUND, structured=(BLOCKS, MOE_EXPERTS), units=((MOE_EXPERTS, 8),), staying=((MOE_EXPERTS, 3),))
    shares = np.array([0.9, *[0.25, 0.5] * 4, 0.9])  # of embeddings and head nothing is read
    uneven = Structure(frozenset({2}), {MOE_EXPERTS: shares})
    assert chain(Cast(built(MATH, uneven, ground), "float32"))[-1].sparsity == 0.375
    many = built(MATH, Structure(shares={MOE_EXPERTS: np.ones(10)}), ground)
    assert many == Prune(MATH, 0.625, scope=MOE_EXPERTS)
    assert CoefficientSpace(replace(ground, staying=((MOE_EXPERTS, 6),))).shares == {MOE_EXPERTS: 0.25}
    draws = Structures(ground, STILL.model_copy(update={"shift": 0.1}))
    own = structure_of(ground.candidate(built(MATH, uneven, ground)), ground)
    found = [draws.child([own], 0.8, 0.5, rng(i)).shares[MOE_EXPERTS] for i in range(40)]
    assert all(len(set(row.tolist())) == 1 for row in found)
    counts = {round(row[0] * 8) for row in found}
    assert len(counts) >= 3, "inherited numbers move"
    assert max(counts) <= 5
