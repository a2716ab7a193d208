"""What every Searcher promises; a new searcher is a new row of `SEARCHERS`."""

from __future__ import annotations

import numpy as np
import pytest

from sae_moo.errors import RunError
from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.recipe import Cast, Expert, Merge, Prune, experts_of
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.operators import ZeroAwareCrossover
from sae_moo.searchers.optuna_samplers import OptunaSearcher
from sae_moo.searchers.sae import Archive, SaeSearcher
from sae_moo.searchers.scalar import CovarianceAdaptation, ParticleSwarm, RandomDraws, ScalarSearcher, Swarm
from sae_moo.searchers.schedule import Adaptive, Schedule
from sae_moo.searchers.searcher import Recalling
from sae_moo.searchers.space import CoefficientSpace, Ground, LineageSpace

GROUND = Ground(("math", "code", "law"), (False, True, True, False))
ACCURACY, SPARSITY = Objective("accuracy", ("a", "b")), Objective("sparsity")
THREE = (Objective("a", ("a",)), Objective("b", ("b",)), SPARSITY)
LIMIT = (Constraint(SPARSITY, high=0.5),)


def nsga(space, algorithm="nsga2", pace="generational", objectives=(ACCURACY, SPARSITY), ground=GROUND, **more):
    def make(seed: int = 0):
        return NsgaSearcher(space(ground), objectives, LIMIT, algorithm, 12, seed, Schedule(period=2), pace, **more)

    return make


SEARCHERS = {
    "nsga2 over lineages": nsga(LineageSpace),
    "nsga2 over lineages, one ratio": nsga(
        LineageSpace, ground=Ground(("math", "code", "law"), (False, True, True, False), granularity="model")
    ),
    "nsga2 over lineages, global scope": nsga(
        LineageSpace, ground=Ground(("math", "code", "law"), (False, True, True, False), scope="global")
    ),
    "nsga2 over lineages, whole neurons": nsga(
        LineageSpace, ground=Ground(("math", "code", "law"), (False, True, True, False), scope="neurons")
    ),
    "nsga2 over lineages, a pattern": nsga(
        LineageSpace, ground=Ground(("math", "code", "law"), (False, True, True, False), scope="2:4")
    ),
    "nsga2 over coefficients, whole heads": nsga(
        CoefficientSpace, ground=Ground(("math", "code", "law"), (False, True, True, False), scope="heads")
    ),
    "nsga2 over lineages, steady-state": nsga(LineageSpace, pace="steady-state"),
    "nsga2 over lineages, of pruned weights": nsga(
        LineageSpace, operators={"crossover": ZeroAwareCrossover(GROUND, remerge=0.0)}
    ),
    "nsga3 over lineages": nsga(LineageSpace, "nsga3", objectives=THREE),
    "nsga3 over lineages, steady-state": nsga(LineageSpace, "nsga3", "steady-state", THREE),
    "nsga2 over coefficients": nsga(CoefficientSpace),
    "nsga3 over coefficients": nsga(CoefficientSpace, "nsga3", objectives=THREE),
    "nsga2 over coefficients, steady-state": nsga(CoefficientSpace, pace="steady-state"),
}


def sae(**settings):
    def make(seed: int = 0):
        return SaeSearcher(GROUND, (ACCURACY, SPARSITY), LIMIT, Archive(12, **settings), seed, Schedule(period=2))

    return make


def scalar(optimizer, weights=None, sparsity=None, ground=GROUND, **more):
    def make(seed: int = 0):
        space = CoefficientSpace(ground, sparsity=sparsity)
        made = optimizer(space, 12, 0.6, **more)
        return ScalarSearcher(space, (ACCURACY, SPARSITY), LIMIT, made, "moved", weights, seed)

    return make


def optuna(sampler, weights=None):
    def make(seed: int = 0):
        space = CoefficientSpace(GROUND)
        return OptunaSearcher(space, (ACCURACY, SPARSITY), LIMIT, sampler, 12, 0.6, weights, seed)

    return make


BOTH = {"accuracy": 1.0, "sparsity": 0.5}
SEARCHERS |= {
    "nsga2 over lineages, adaptive": lambda seed=0: NsgaSearcher(
        LineageSpace(GROUND), (ACCURACY, SPARSITY), LIMIT, "nsga2", 12, seed, Adaptive()
    ),
    "sae global": sae(),
    "sae local": sae(local=True),
    "sae local, by norms, no matchmaker": sae(local=True, measure="hoyer", matchmaker=False),
    "sae global, adaptive": lambda seed=0: SaeSearcher(
        GROUND, (ACCURACY, SPARSITY), LIMIT, Archive(12), seed, Adaptive(high=0.4)
    ),
    "m2n2": sae(omega=1.0, beta=0.0, crossover="split-slerp"),
    "model swarms": scalar(ParticleSwarm, BOTH),
    "model swarms, one sparsity": scalar(ParticleSwarm, sparsity=0.25),
    "pso merging": scalar(ParticleSwarm, settings=Swarm("pso-merging")),
    "cma-es": scalar(CovarianceAdaptation, BOTH),
    "random": scalar(RandomDraws),
    "tpe": optuna("TPESampler"),
    "tpe, one number": optuna("TPESampler", BOTH),
    "optuna's nsga2": optuna("NSGAIISampler"),
    "optuna's random": optuna("RandomSampler"),
    "optuna's qmc": optuna("QMCSampler"),
}
every = pytest.mark.parametrize("make", SEARCHERS.values(), ids=SEARCHERS.keys())


def drive(searcher, evaluate, count: int, failing=lambda i: False):
    history = []
    while len(history) < count:
        proposals = searcher.ask(1)
        assert len(proposals) == 1
        evaluation = evaluate(proposals[0].recipe)
        if failing(len(history)):
            evaluation = Evaluation(proposals[0].recipe, reason="out of memory")
        searcher.tell(proposals[0], evaluation)
        history.append((proposals[0], evaluation))
    return history


@every
def test_candidates_are_whole(make, landscape):
    for proposal, _ in drive(make(), landscape, 40):
        assert isinstance(proposal.recipe, Cast)
        assert proposal.recipe.dtype == "float32"
        assert set(experts_of(proposal.recipe)) <= set(landscape.names)


@every
def test_the_same_seed_gives_the_same_candidates_and_another_seed_others(make, landscape):
    runs = [[p.recipe for p, _ in drive(make(seed), landscape, 60)] for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@every
def test_global_random_numbers_are_neither_read_nor_changed(make, landscape):
    np.random.seed(1)  # noqa: NPY002  # the global generator is what must not matter
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = [p.recipe for p, _ in drive(make(), landscape, 40)]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert [p.recipe for p, _ in drive(make(), landscape, 40)] == first


@every
def test_recorded_calls_bring_a_fresh_searcher_to_the_same_state(make, landscape):
    first = make()
    history = drive(first, landscape, 31)
    replayed = make()
    for proposal, evaluation in history:
        again = replayed.recall(proposal.vector) if isinstance(replayed, Recalling) else replayed.ask(1)[0]
        assert again == proposal
        replayed.tell(proposal, evaluation)
    assert [p for p, _ in drive(first, landscape, 20)] == [p for p, _ in drive(replayed, landscape, 20)]


@every
def test_many_may_be_out_and_come_back_in_any_order(make, landscape):
    searcher, rng, out, told = make(), np.random.default_rng(0), [], 0
    while told < 60:
        out += searcher.ask(5 - len(out))
        assert out, "never stuck while nothing is out"
        proposal = out.pop(int(rng.integers(len(out))))
        searcher.tell(proposal, landscape(proposal.recipe))
        told += 1


@every
def test_candidates_are_not_proposed_twice(make, landscape):
    recipes = [p.recipe for p, _ in drive(make(), landscape, 80)]
    assert len(set(recipes)) >= 79  # vectors may round to the same recipe; lineages never


@every
def test_failures_are_never_parents_and_do_not_stop_the_search(make, landscape):
    history = drive(make(), landscape, 60, failing=lambda i: i % 3 == 1)
    failed = {proposal.recipe for proposal, evaluation in history if not evaluation.ok}
    assert len(failed) == 20
    for proposal, _ in history:
        assert not failed & set(proposal.parents)


@every
def test_one_seed_gives_one_run_even_when_nearly_all_fail(make, landscape):
    runs = [[p.recipe for p, _ in drive(make(), landscape, 50, failing=lambda i: i % 12 != 1)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


@every
def test_a_first_population_that_fails_whole_says_why(make, landscape):
    with pytest.raises(RunError, match="all 12 first candidates failed: out of memory"):
        drive(make(), landscape, 13, failing=lambda i: True)


@every
def test_the_search_gets_better_than_its_start(make, landscape):
    history = drive(make(), landscape, 150)
    value = [THREE[0].value(e) + THREE[1].value(e) + e.sparsity if e.sparsity <= 0.5 else 0 for _, e in history]
    assert max(value[12:]) > max(value[:12])


@pytest.mark.parametrize("name", [name for name in SEARCHERS if "lineages" in name])
def test_the_first_population_holds_every_expert_and_the_base(name, landscape):
    first = [p for p, _ in drive(SEARCHERS[name](), landscape, 12)]
    assert [p.recipe.input.name for p in first if p.operator == "expert"] == ["math", "code", "law", "base"]
    assert {p.operator for p in first} == {"expert", "weighted average", "task arithmetic", "random merge"}
    assert all(p.generation == 0 for p in first)


@pytest.mark.parametrize("remerge", [0.0, 1.0])
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_children_merge_their_parents_under_the_annealed_ratio(pace, remerge, landscape):
    schedule = Schedule("sawtooth", 0.0, 0.8, period=4, growth=1)
    operators = {"crossover": ZeroAwareCrossover(GROUND, remerge=remerge)}
    searcher = NsgaSearcher(
        LineageSpace(GROUND), (ACCURACY, SPARSITY), population=10, schedule=schedule, pace=pace, operators=operators
    )
    history = drive(searcher, landscape, 60)
    for i, (proposal, _) in enumerate(history[10:]):
        assert len(proposal.parents) == 2
        assert proposal.numbers == {"annealed ratio": pytest.approx(schedule(i // 10))}
        assert proposal.generation == 1 + i // 10
        inner = proposal.recipe.input
        inner = inner.input if isinstance(inner, Prune) else inner
        assert isinstance(inner, Merge)
        assert inner.method == ("task_arithmetic" if remerge else "zero_aware")
        if remerge:
            assert inner.inputs == tuple(Expert(name) for name in GROUND.experts)
            continue
        for parent, source in zip(proposal.parents, inner.inputs, strict=True):
            assert parent == (source.input if isinstance(source, Prune) else source)


def test_limits_are_kept_in_the_end(landscape):
    searcher = SEARCHERS["nsga2 over lineages"]()
    drive(searcher, landscape, 150)
    population = searcher._algorithm.pop
    assert all(individual.CV[0] == 0 for individual in population)
    assert max(individual.get("evaluation").sparsity for individual in population) <= 0.5


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="population: expected at least 4, got 3"):
        NsgaSearcher(LineageSpace(GROUND), (ACCURACY,), population=3)
    with pytest.raises(ValueError, match="expected 'nsga2' or 'nsga3', got 'nsga'"):
        NsgaSearcher(LineageSpace(GROUND), (ACCURACY,), algorithm="nsga")
