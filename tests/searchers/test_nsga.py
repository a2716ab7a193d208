"""NSGA-II and NSGA-III: what they do beyond the contract."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pymoo.core.individual import Individual
from pymoo.core.population import Population

from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.operators import PruneMergeMutation, ZeroAwareCrossover
from sae_moo.searchers.schedule import Schedule
from sae_moo.searchers.space import LineageSpace
from sae_moo.testing.searchers import GROUND, LIMIT, OBJECTIVES, assignment, drive


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if "operators" in row.settings])
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_the_first_population_holds_every_expert_and_the_base(name, pace, landscape):
    searcher = ALGORITHMS[name].searcher(assignment(name, space="lineage", pace=pace))
    first = [p for p, _ in drive(searcher, landscape, 12)]
    assert [p.recipe.input.name for p in first if p.operator == "expert"] == ["math", "code", "law", "base"]
    assert {p.operator for p in first} == {"expert", "weighted average", "task arithmetic", "random merge"}
    assert all(p.generation == 0 for p in first)


@pytest.mark.parametrize("remerge", [0.0, 1.0])
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_children_merge_their_parents_under_the_annealed_ratio(pace, remerge, landscape):
    schedule = Schedule(schedule="sawtooth", low=0.0, high=0.8, period=4, growth=1)
    settings = Operators(remerge=remerge)
    searcher = NsgaSearcher(
        LineageSpace(GROUND), OBJECTIVES, population=10, schedule=schedule, pace=pace, settings=settings
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
    searcher = ALGORITHMS["nsga2"].searcher(assignment("nsga2"))
    drive(searcher, landscape, 150)
    population = searcher._algorithm.pop
    assert all(individual.CV[0] == 0 for individual in population)
    assert max(individual.get("evaluation").sparsity for individual in population) <= 0.5


def test_operators_of_ones_own_take_the_place_of_ours(landscape):
    operators = {"crossover": ZeroAwareCrossover(GROUND, Operators(remerge=0.0))}
    searcher = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMIT, population=12, operators=operators)
    history = drive(searcher, landscape, 30)
    assert {p.operator for p, _ in history[12:]} == {"zero-aware crossover"}


@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_what_was_evaluated_is_not_bred_again_as_it_was_resolved_either(pace, landscape):
    """Children that are the very recipes of the population, whose scopes were resolved when they were evaluated."""

    def resolved(recipe):
        inner = recipe.input
        return Cast(replace(inner, counts=(7, 9)), recipe.dtype) if isinstance(inner, Prune) else recipe

    def evaluate(recipe):
        return replace(landscape(recipe), recipe=resolved(recipe))

    class Copying(ZeroAwareCrossover):
        def do(self, problem, pop, *args, **kwargs):
            bred.append(len(pop))
            return Population.create(*(Individual(X=first.X.copy()) for first, _ in pop))

    class Nothing(PruneMergeMutation):
        def do(self, problem, pop, *args, **kwargs):
            return pop

    bred = []
    operators = {"crossover": Copying(GROUND), "mutation": Nothing(GROUND)}
    searcher = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, population=12, pace=pace, operators=operators)
    for _ in range(12):
        (proposal,) = searcher.ask(1)
        searcher.tell(proposal, evaluate(proposal.recipe))
    assert any(isinstance(each.X[0].input, Prune) and each.X[0].input.counts for each in searcher._algorithm.pop)
    assert not searcher.ask(1)
    assert len(bred) == 100


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="population: expected at least 4, got 3"):
        NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, population=3)
