from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.callback import CallbackCollection
from pymoo.core.crossover import Crossover
from pymoo.core.individual import Individual
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.selection import Selection
from pymoo.optimize import minimize

import sae_moo as sm
from sae_moo.objectives import Evaluation, Sparsity, TaskMean
from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.searchers import fitness, selection
from sae_moo.searchers.breeding import ABLATION, Ablation, Operators
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.individuals import Origin
from sae_moo.searchers.nsga import reference_directions
from sae_moo.searchers.operators import (
    LineageMating,
    LineageSampling,
    PruneMergeMutation,
    RecipeDuplicates,
    ZeroAwareCrossover,
)
from sae_moo.searchers.problem import EVALUATION
from sae_moo.searchers.schedule import Schedule
from sae_moo.searchers.selection import AttractionMating, SeededTournament
from sae_moo.searchers.space import CoefficientSpace, LineageSpace

GROUND = Ground(("math", "code"), (False, True, True, False))
OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())


def individual(name="math", scores=(1.0, 0.0), group_sparsity=(0.0, 0.2, 0.6, 0.0), ok=True) -> Individual:
    recipe = Cast(Expert(name), "float32")
    sparsity = float(np.mean(group_sparsity[1:3]))
    reason = None if ok else "broken"
    evaluation = Evaluation(recipe, {"a": scores} if ok else {}, sparsity, group_sparsity, reason)
    each = Individual(X=np.array([recipe], dtype=object))
    each.F, each.G = np.array([-np.mean(scores), -sparsity]), np.array([0.0 if ok else 10.0])
    each.set("evaluation", evaluation)
    return each


def test_fitness_of_known_scores():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert fitness.credit(scores).tolist() == [0.5, 1.0, 1.0]
    assert fitness.credit(scores, 2.0, np.array([2.0, 0.5, 0.5])).tolist() == [0.5, 0.5, 0.5]
    assert fitness.competition(scores).tolist() == pytest.approx([1.5 / 3, 0.5 / 3])
    assert fitness.competition(scores, alpha=0).tolist() == [2.0, 1.0]
    assert fitness.attraction(scores, 0).tolist() == [0.0, 0.0]
    assert fitness.attraction(scores, 1).tolist() == [1.0, 0.0]
    assert fitness.sparsity_score(np.array([0.0, np.log(3)])).tolist() == pytest.approx([0.25, 0.75])
    local = fitness.total(scores, np.array([[0.0, 0.5], [0.0, 0.9]]))
    assert local.shape == (2, 2)
    assert local[0, 0] - local[1, 0] == pytest.approx(0.5 * (1.0 / 3))
    assert fitness.total(scores, np.array([0.3, 0.3])).sum() == pytest.approx(0.5 * 2 / 3 + 0.5)


def test_attraction_finds_the_complement():
    rng = np.random.default_rng(0)
    pop = Population.create(
        individual("math", (1.0, 1.0, 0.0, 0.0)),
        individual("code", (0.0, 0.0, 1.0, 1.0)),
        individual("law", (1.0, 1.0, 0.0, 0.0)),
    )
    pairs = AttractionMating()._do(None, pop, 200, 2, random_state=rng)
    for first, second in pairs:
        assert (first.X[0].input.name == "code") != (second.X[0].input.name == "code")
    assert all(each.get("total") is not None for each in pop)


def test_what_counts_is_the_evaluation_that_an_individual_has_now():
    pop = Population.create(individual("math", (1.0, 0.0)), individual("code", (1.0, 0.0)))
    mating = AttractionMating()
    mating._do(None, pop, 1, 2, random_state=np.random.default_rng(0))
    pop[1].set("evaluation", individual("code", (0.0, 1.0)).get("evaluation"))
    pairs = mating._do(None, pop, 50, 2, random_state=np.random.default_rng(0))
    assert all(first is not second for first, second in pairs), "they complement each other now"


def test_failed_candidates_are_no_parents():
    pop = Population.create(individual("math"), individual("code", ok=False))
    pairs = AttractionMating()._do(None, pop, 50, 2, random_state=np.random.default_rng(0))
    assert {each.X[0].input.name for each in pairs.ravel()} == {"math"}
    with pytest.raises(ValueError, match="at least one candidate whose evaluation did not fail"):
        AttractionMating()._do(None, pop[1:], 1, 2, random_state=np.random.default_rng(0))


def test_founders_come_back_after_they_died():
    algorithm = SimpleNamespace(data={})

    founder = individual("math")
    founder.set("origin", Origin("expert"))
    mating = AttractionMating(Ablation(founders=1.0))
    rng = np.random.default_rng(0)
    mating._do(None, Population.create(founder, individual("code")), 1, 2, random_state=rng, algorithm=algorithm)
    later = mating._do(None, Population.create(individual("law")), 20, 2, random_state=rng, algorithm=algorithm)
    assert all(pair[1] is founder for pair in later)


def test_crossover_follows_the_local_ratio():
    a, b = individual("math"), individual("code")
    a.set("total", np.array([1.0, 1.0, 3.0, 1.0]))
    b.set("total", np.array([1.0, 3.0, 1.0, 1.0]))
    exact = ZeroAwareCrossover(GROUND, Operators(spread=0, jitter=0, stretch=0, remerge=0))
    (child,) = exact.do(None, [[a, b]], random_state=np.random.default_rng(0))
    merge = child.X[0].input
    assert merge.method == "zero_aware"
    assert merge.weights == ((0.5, 0.5), (0.25, 0.75), (0.75, 0.25), (0.5, 0.5))
    assert merge.params == ()
    assert [e.recipe for e in child.get("origin").parents] == [a.X[0], b.X[0]]


def test_shares_spread_over_children_and_groups_and_task_vectors_are_stretched():
    pair = [individual("math"), individual("code")]
    rng = np.random.default_rng(0)

    def merges(ablation=ABLATION, **settings):
        quiet = Operators(**{"spread": 0, "jitter": 0, "stretch": 0, "remerge": 0} | settings)
        crossover = ZeroAwareCrossover(GROUND, quiet, ablation)
        return [child.X[0].input for child in crossover.do(None, [pair] * 40, random_state=rng)]

    assert len({merge.weights for merge in merges(spread=0.2)}) > 30
    assert all(len(set(merge.weights)) == 1 for merge in merges(spread=0.2))
    assert all(len(set(merge.weights)) > 1 for merge in merges(jitter=0.2))
    scales = [dict(merge.params)["scale"] for merge in merges(stretch=1, reach=0.15)]
    assert 0.05 < np.std(scales) < 0.3
    assert np.mean(scales) == pytest.approx(1, abs=0.1)
    assert all(merge.method == "linear" for merge in merges(Ablation(zero_aware=False)))


def test_the_tournament_prefers_feasible_then_rank_then_crowding():
    worse = (
        {"cv": 1.0, "rank": 0, "crowding": 9.0},
        {"cv": 0.0, "rank": 1, "crowding": 9.0},
        {"cv": 0.0, "rank": 0, "crowding": 1.0},
    )
    better = {"cv": 0.0, "rank": 0, "crowding": 2.0}
    for other in worse:
        pop = Population.create(individual("math"), individual("code"))
        for each, facts in zip(pop, (better, other), strict=True):
            each.G = np.array([facts["cv"]])
            each.set("rank", facts["rank"])
            each.set("crowding", facts["crowding"])
        chosen = SeededTournament()._do(None, pop, 200, 1, random_state=np.random.default_rng(0)).ravel()
        assert (chosen == 0).mean() == pytest.approx(0.75, abs=0.08), "the worse one only where it met itself"


def test_every_task_counts_the_same_however_many_items_it_has():
    scores = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])  # one item of a task, two of another
    weight = np.array([1.5, 0.75, 0.75])
    assert fitness.competition(scores, weight=weight).tolist() == pytest.approx([0.5, 0.5])
    assert fitness.attraction(scores, 0, weight).tolist() == pytest.approx([0.0, 1.5])
    assert fitness.attraction(scores, 1, weight).tolist() == pytest.approx([1.5, 0.0])


def test_instances_weigh_by_the_length_of_their_task():
    scores = {"short": (1.0,), "long": (1.0, 0.0)}
    one = Individual(X=np.array([Expert("math")], dtype=object))
    one.set(EVALUATION, Evaluation(Cast(Expert("math"), "float32"), scores))
    assert fitness.instance_weights(one.get("evaluation")).tolist() == [1.5, 0.75, 0.75]


def test_a_split_point_mirrors_the_shares_after_it():
    a, b = individual("math"), individual("code")
    a.set("total", np.full(4, 3.0))
    b.set("total", np.full(4, 1.0))
    settings = Operators(spread=0, jitter=0, stretch=0, remerge=0)
    splitting = ZeroAwareCrossover(GROUND, settings, Ablation(split=1))
    places = set()
    for child in splitting.do(None, [[a, b]] * 50, random_state=np.random.default_rng(0)):
        shares = [row[0] for row in child.X[0].input.weights]
        assert shares == sorted(shares, reverse=True)
        assert set(shares) == {0.75, 0.25}
        places.add(shares.index(0.25))
    assert places == {1, 2, 3}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_pruning_before_and_after_the_merge(before, after):
    merge = Merge("zero_aware", (individual("math").X[0], individual("code").X[0]), (0.5, 0.5))
    settings = Operators(**FLAT | {"inherit": 0, "prune_after": after})
    mutation = PruneMergeMutation(GROUND, 0.5, settings, Ablation(prune_before=before))
    mutated = mutation.mutated(Cast(merge, "float32"), Origin("x"), 0.5, np.random.default_rng(0))
    inner = mutated.input
    if after:
        assert 0 < inner.sparsity[1] == inner.sparsity[2] < 0.5
        assert inner.sparsity[0] == inner.sparsity[3] == 0
        inner = inner.input
    assert all(isinstance(source, Prune) == before for source in inner.inputs)
    if before:
        assert 0 < inner.inputs[0].sparsity[1] < 0.5


def test_experts_are_not_pruned_before_they_are_merged_anew():
    merge = Merge("task_arithmetic", (Expert("math"), Expert("code")), (0.5, 0.5))
    mutated = PruneMergeMutation(GROUND, 0.5, ablation=Ablation(prune_before=True)).mutated(
        Cast(merge, "float32"), Origin("x"), 0.5, np.random.default_rng(0)
    )
    assert mutated.input.input == merge


FLAT = {"inherit": 1, "shape": 1, "shift": 0, "slope": 0, "tilt": 0, "noise": 0}


def targets(count=400, parents=(), ratio=0.5, ground=GROUND, **settings) -> np.ndarray:
    """Sparsities asked of the two prunable groups by many mutations; shape (count, 2)."""
    mutation = PruneMergeMutation(ground, ratio, Operators(**FLAT | settings))
    origin, rng = Origin("x", tuple(each.get("evaluation") for each in parents)), np.random.default_rng(0)
    eta = ratio if isinstance(ratio, float) else ratio(rng)
    asked = [mutation.mutated(Cast(Expert("math"), "float32"), origin, eta, rng).input for _ in range(count)]
    return np.array([each.sparsity[1:3] if isinstance(each, Prune) else (0.0, 0.0) for each in asked])


def test_targets_are_inherited_from_the_first_parent():
    parents = (individual(), individual(group_sparsity=(0, 0.1, 0.1, 0)))
    assert set(map(tuple, targets(parents=parents[:1]).tolist())) == {(0.2, 0.6)}
    drawn = targets(parents=parents)
    assert set(map(tuple, drawn.tolist())) == {(0.2, 0.6), (0.4, 0.4)}, "its level, the shape of either"
    assert targets(parents=parents[:1], shift=0.05).mean(axis=1).std() == pytest.approx(0.05, rel=0.15)


def test_levels_are_spread_below_the_annealed_ratio_and_shapes_are_kept_at_every_level():
    drawn = targets(parents=(individual(),), inherit=0, ratio=0.7)
    level = drawn.mean(axis=1)
    assert level.max() < 0.7
    np.testing.assert_allclose(drawn[level > 0.25] @ [-1, 1], 0.4, atol=2e-4)
    assert np.quantile(level, [0.25, 0.75]).tolist() == pytest.approx([0.175, 0.525], abs=0.05)
    exact = targets(parents=(individual(),), inherit=0, ratio=lambda rng: 0.4)
    assert set(map(tuple, exact.tolist())) == {(0.2, 0.6)}, "a schedule that draws for each child draws its level"
    assert (targets(parents=(individual(),), slope=0.1) @ [-1, 1]).std() == pytest.approx(0.1, rel=0.15)


def test_new_shapes_are_slopes_over_depth():
    dense = individual(group_sparsity=(0, 0, 0, 0))
    for settings in (
        {"shape": 0, "parents": (individual(),)},
        {"parents": (dense,), "inherit": 0, "ratio": lambda rng: 0.4},
    ):
        drawn = targets(**{"ratio": 0.5, "tilt": 0.1} | settings)
        np.testing.assert_allclose(drawn.mean(axis=1), 0.4, atol=1e-4)
        assert (drawn @ [-1, 1]).std() == pytest.approx(0.1, rel=0.15)
        assert abs((drawn @ [-1, 1]).mean()) < 0.02
    assert Ground(("math",), (True,)).depth.tolist() == [0.0]
    assert Ground(("math",), (False, True, True, True, False)).depth.tolist() == [0, -0.5, 0, 0.5, 0]


def test_structured_targets_inherit_nothing():
    ground = Ground(("math", "code"), (False, True, True, False), scope="neurons")
    mutation = PruneMergeMutation(ground, lambda rng: 0.3, Operators(**FLAT))
    origin = Origin("x", (individual().get("evaluation"),))
    mutated = mutation.mutated(Cast(Expert("math"), "float32"), origin, 0.3, np.random.default_rng(0))
    assert mutated.input.sparsity == 0.3


@pytest.mark.parametrize("shares", [[1.0], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4], [1e-12, 5.0, 1e9], list(range(30))])
def test_in_proportion_is_drawn_as_numpy_draws(shares):
    shares = np.array(shares, dtype=np.float64)
    ours, numpys = np.random.default_rng(0), np.random.default_rng(0)
    drawn = [selection._drawn(shares, ours) for _ in range(300)]
    assert drawn == [int(numpys.choice(len(shares), p=shares / shares.sum())) for _ in range(300)]
    assert ours.random() == numpys.random()


@pytest.mark.parametrize("shares", [[0.0, 0.0], [0.5, np.nan], [0.5, np.inf], [1.0, -0.5]])
def test_in_proportion_to_what_is_no_share_nothing_is_drawn(shares):
    with pytest.raises(ValueError, match="expected shares of at least 0, some above"):
        selection._drawn(np.array(shares), np.random.default_rng(0))


def test_a_mating_that_was_copied_with_its_population_pairs_as_the_other():
    pop, mating = Population.create(*(individual(name) for name in ("math", "code", "law"))), AttractionMating()
    mating._do(None, pop, 1, 2, random_state=np.random.default_rng(0))
    pairs = []
    for each, among in ((mating, pop), deepcopy((mating, pop))):
        chosen = each._do(None, among, 5, 2, random_state=np.random.default_rng(1))
        pairs.append([[(parent.X[0], parent.get("total").tolist()) for parent in pair] for pair in chosen])
    assert pairs[0] == pairs[1]


def test_a_mating_that_looked_before_pairs_as_one_that_did_not(monkeypatch):
    """Populations in which members come, go, change places, share an evaluation, and are evaluated anew."""
    rng, before = np.random.default_rng(0), AttractionMating()
    founder = individual("founder", (0.5, 0.5), (0.0, 0.1, 0.1, 0.0))
    founder.set("origin", Origin("expert"))
    algorithm = SimpleNamespace(data={"founders": [founder]})
    members = [individual(str(i), tuple(rng.random(2)), (0.0, *rng.random(2), 0.0)) for i in range(6)]
    looked = []
    total = fitness.total
    monkeypatch.setattr(fitness, "total", lambda *given: looked.append(1) or total(*given))
    for step in range(120):
        match step % 6:
            case 1:
                members[int(rng.integers(6))] = individual(f"n{step}", tuple(rng.random(2)), (0.0, *rng.random(2), 0.0))
            case 2:
                rng.shuffle(members)
            case 3:
                members[0].set("evaluation", members[1].get("evaluation"))
            case 4:
                members[2].set("evaluation", individual(f"e{step}", tuple(rng.random(2))).get("evaluation"))
            case 5 if founder not in members:
                members.append(founder)
            case 5:
                members.remove(founder)
        pop, seed = Population.create(*members), int(rng.integers(1 << 30))
        told = []
        for mating in (before, AttractionMating()):
            pairs = mating._do(None, pop, 3, 2, random_state=np.random.default_rng(seed), algorithm=algorithm)
            told.append([[(id(each), each.get("total").tolist()) for each in pair] for pair in pairs])
        assert told[0] == told[1]
    looked.clear()
    for _ in range(5):
        before._do(None, pop, 3, 2, random_state=rng, algorithm=algorithm)
    assert not looked, "nothing had changed"


def test_targets_stay_in_range():
    mutation = PruneMergeMutation(Ground(("math",), (True,), most=0.7), 0.6, Operators(noise=5.0))
    rng = np.random.default_rng(0)
    asked = [mutation.mutated(Cast(Expert("math"), "float32"), Origin("x"), mutation.ratio, rng) for _ in range(100)]
    ratios = [each.input.sparsity[0] for each in asked if isinstance(each.input, Prune)]
    assert max(ratios) == 0.7
    assert any(isinstance(each.input, Expert) for each in asked), "a target of 0 prunes nothing"


@pytest.mark.parametrize("asked", [1, 3, 8])
def test_children_that_nobody_tried_are_bred_until_there_are_enough(asked):
    """As pymoo breeds them that looks at everyone each time."""
    names = [f"x{i}" for i in range(12)]
    tried, told = {individual(name).X[0] for name in names[:6]}, []
    for made in (
        lambda *operators: LineageMating(*operators, tried),
        lambda *operators: Mating(*operators, eliminate_duplicates=RecipeDuplicates(tried), n_max_iterations=100),
    ):
        draws = np.random.default_rng(3)
        bred = [individual(names[int(i)]) for i in draws.integers(12, size=400)]
        for place, child in enumerate(bred):
            child.set("place", place)
        mating = made(Chosen(), Given(bred), NoMutation())
        children = mating.do(None, Population.create(individual("x0")), asked, random_state=np.random.default_rng(0))
        told.append(
            ([child.X[0].input.name for child in children], [child.get("place") for child in children], len(bred))
        )
    assert told[0] == told[1]
    assert len(told[0][0]) == min(asked, 6)
    assert not set(told[0][0]) & set(names[:6])


class Chosen(Selection):
    def _do(self, problem, pop, n_select, n_parents, **kwargs):
        return np.zeros((n_select, n_parents), dtype=int)


class NoMutation(Mutation):
    def do(self, problem, pop, *args, **kwargs):
        return pop


class Given(Crossover):
    """Gives children that are at hand, one a mating."""

    def __init__(self, bred):
        super().__init__(2, 1, prob=1.0)
        self.bred = bred

    def do(self, problem, pop, *args, **kwargs):
        return Population.create(*(self.bred.pop() for _ in range(min(len(pop), len(self.bred)))))


@pytest.mark.parametrize("to_itself", [True, False])
def test_who_is_left_is_told_by_place_too(to_itself):
    drop = RecipeDuplicates({individual("law").X[0]})
    pop = Population.create(*(individual(name) for name in ("law", "math", "code", "math", "tax")))
    kept, left, dropped = drop.do(pop, Population.create(individual("tax")), return_indices=True, to_itself=to_itself)
    assert (left, dropped) == (([1, 2], [0, 3, 4]) if to_itself else ([0, 1, 2, 3], [4]))
    assert [each is pop[i] for each, i in zip(kept, left, strict=True)] == [True] * len(left)
    assert drop.do(pop[:0]) is not None
    assert len(drop.do(pop[:0], pop)) == 0


def test_duplicates_are_dropped_once():
    seen = {individual("law").X[0]}
    pop = Population.create(*(individual(name) for name in ("math", "code", "math", "law")))
    kept = RecipeDuplicates(seen).do(pop, Population.create(individual("code")))
    assert [each.X[0].input.name for each in kept] == ["math"]


@pytest.mark.parametrize("operator", [LineageSampling(GROUND), ZeroAwareCrossover(GROUND), PruneMergeMutation(GROUND)])
def test_a_forgotten_generator_is_an_error_not_a_silent_seed(operator):
    with pytest.raises(ValueError, match="random_state: expected a numpy Generator"):
        operator.do(None, 2 if isinstance(operator, LineageSampling) else Population())


@pytest.mark.parametrize("wrap", [lambda callback: callback, lambda callback: CallbackCollection(callback)])
def test_plain_pymoo_works_and_anneals_from_the_low_end(landscape, wrap):
    ratios = []

    class Noting(PruneMergeMutation):
        def do(self, *args, **kwargs):
            ratios.append(self.ratio)
            return super().do(*args, **kwargs)

    schedule = Schedule(schedule="sawtooth", low=0.1, high=0.5, period=4, growth=1)
    problem = sm.MergeProblem(LineageSpace(GROUND), OBJECTIVES, evaluate=landscape)
    algorithm = NSGA2(
        8,
        sampling=LineageSampling(GROUND),
        selection=AttractionMating(),
        crossover=ZeroAwareCrossover(GROUND),
        mutation=Noting(GROUND),
        eliminate_duplicates=RecipeDuplicates(),
    )
    result = minimize(problem, algorithm, ("n_gen", 6), callback=wrap(sm.CyclicAnnealing(schedule)), seed=1)
    steps = [ratio for i, ratio in enumerate(ratios) if i == 0 or ratio != ratios[i - 1]]  # duplicates are bred anew
    assert steps == pytest.approx([schedule(step) for step in range(5)])
    assert len(landscape.evaluated) == 48
    assert all(isinstance(row[0], Cast) for row in np.atleast_2d(result.X))
    assert (result.F <= 0).all()


def test_plain_pymoo_over_coefficients(landscape):
    problem = sm.MergeProblem(CoefficientSpace(GROUND), OBJECTIVES, evaluate=landscape)
    result = minimize(problem, NSGA2(8), ("n_gen", 3), seed=1)
    assert result.F.shape[1] == 2


def test_annealing_an_algorithm_that_cannot_prune_is_an_error(landscape):
    problem = sm.MergeProblem(CoefficientSpace(GROUND), OBJECTIVES, evaluate=landscape)
    with pytest.raises(TypeError, match="expected an algorithm whose mutation has a ratio"):
        minimize(problem, NSGA2(8), ("n_gen", 2), callback=sm.CyclicAnnealing(Schedule()), seed=1)


def test_coefficients_and_recipes():
    space = CoefficientSpace(GROUND)
    assert space.n_var == 4 * 2 + 2
    x = space.encode(np.array([0.5, 0.25]), 0.3)
    recipe = space.decode(x)
    assert recipe.input.sparsity == (0.0, 0.3, 0.3, 0.0)
    assert recipe.input.input == Merge("task_arithmetic", (Expert("math"), Expert("code")), ((0.5, 0.25),) * 4)
    assert isinstance(space.decode(space.encode(np.zeros(2))).input, Merge)


@pytest.mark.parametrize(("objectives", "population"), [(1, 10), (2, 10), (3, 24), (4, 12)])
def test_reference_directions_fit_the_population(objectives, population):
    directions = reference_directions(objectives, population)
    assert directions.shape[1] == objectives
    assert objectives <= max(len(directions), 2) <= population
    np.testing.assert_allclose(directions.sum(axis=1), 1)


def test_a_ladder_takes_the_place_of_random_merges():
    ground = Ground(("math", "code", "law"), (False, True, True, False))
    plain, ladder = (
        LineageSampling(ground, ablation=Ablation(ladder=rungs)).do(None, 16, random_state=np.random.default_rng(0))
        for rungs in (0, 3)
    )
    rungs = ladder[9:12]
    assert [individual.get("origin").operator for individual in rungs] == ["pruned average"] * 3
    assert [individual.X[0].input.sparsity[1] for individual in rungs] == pytest.approx([0.2, 0.4, 0.6])
    assert [i.X[0] for i in ladder[:9]] == [i.X[0] for i in plain[:9]]
    assert [i.get("origin").operator for i in ladder[12:]] == ["random merge"] * 4
    steep = LineageSampling(ground, ablation=Ablation(ladder=50))
    assert len(steep.do(None, 11, random_state=np.random.default_rng(0))) == 11


@pytest.mark.parametrize("granularity", ["block", "model"])
def test_children_merged_anew_are_task_arithmetic_by_the_mixing_weights_of_their_parents(granularity):
    ground = Ground(("math", "code"), (False, True, True, False), granularity=granularity)
    rows = 4 if granularity == "block" else 1
    inner = ground.task_arithmetic(np.tile([0.8, 0.2], (rows, 1)))
    first, second = individual("math"), individual("code")
    first.X[0] = Cast(Prune(inner, 0.5), "float32")  # its zeros do not count
    anew = ZeroAwareCrossover(ground, Operators(spread=0, jitter=0, stretch=0, remerge=1))
    rng = np.random.default_rng(0)
    children = anew.do(None, [[first, second]] * 60, random_state=rng)
    found = [np.reshape(child.X[0].input.weights, (-1, 2)) for child in children]
    assert {(child.X[0].input.method, child.get("origin").operator) for child in children} == {
        ("task_arithmetic", "merge anew")
    }
    assert all(len(each) == rows and (each == each[0]).all() for each in found)
    kept = [each[0].tolist() == [0.8, 0.2] for each in found]
    assert 15 < sum(kept) < 45, "half keep the first parent's"
    assert {tuple(each[0]) for each, same in zip(found, kept, strict=True) if not same} == {(0.4, 0.6)}
    assert children[0].get("origin").parents == (first.get("evaluation"), second.get("evaluation"))
    anew = ZeroAwareCrossover(ground, Operators(spread=0, jitter=0, stretch=1, reach=0.1, wobble=0.02, remerge=1))
    moved = np.array(
        [np.reshape(c.X[0].input.weights, (-1, 2)) for c in anew.do(None, [[first, first]] * 300, random_state=rng)]
    )
    moved = moved - [0.8, 0.2]
    assert moved.mean(axis=1).std() == pytest.approx(0.1, rel=0.2)
    if rows > 1:
        assert (moved - moved.mean(axis=1, keepdims=True)).std() == pytest.approx(0.02 * np.sqrt(3 / 4), rel=0.2)


def test_the_share_of_children_merged_anew():
    pairs = [[individual("math"), individual("code")]] * 200
    children = ZeroAwareCrossover(GROUND, Operators(remerge=0.25)).do(
        None, pairs, random_state=np.random.default_rng(0)
    )
    anew = [child.get("origin").operator == "merge anew" for child in children]
    assert np.mean(anew) == pytest.approx(0.25, abs=0.08)
    assert {child.X[0].input.method for child in children} == {"task_arithmetic", "zero_aware"}


def test_the_first_random_merges_are_of_the_kind_that_children_are():
    ground = Ground(("math", "code", "law"), (False, True, True, True, False))
    drawn = LineageSampling(ground, 0.6, Operators(tilt=0.3)).do(None, 60, random_state=np.random.default_rng(0))[9:]
    slopes = []
    for each in drawn:
        merge = each.X[0].input
        if isinstance(merge, Prune):
            first, middle, last = merge.sparsity[1:4]
            if first > 0 and last > 0:
                assert middle == pytest.approx((first + last) / 2, abs=1e-3)
                slopes.append(last - first)
            merge = merge.input
        assert len(set(merge.weights)) == 1
    assert np.std(slopes) > 0.1
    grouped = ground.first(20, np.random.default_rng(0), 0.6)[9:]
    assert all(len(set(recipe.input.input.weights)) == 5 for _, recipe in grouped)
