"""Other allocations of a child's budget: as many zeros, elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.alternatives import alternatives, levelled
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.space import LineageSpace
from sae_moo.testing.searchers import GROUND, LIMIT, OBJECTIVES, assignment, drive

MERGE = Merge("linear", (Expert("math"), Expert("code")), (0.5, 0.5))
WIDE = replace(
    GROUND, prunable=(False, *[True] * 6, False), tensors=tuple((i % 8, 40 * (i % 8 + 1)) for i in range(24))
)


def drawn(child, count=7, seed=0, ground=WIDE):
    return alternatives(ground, child, count, Operators(), np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(20))
def test_as_many_zeros_are_asked_for_over_the_same_merge(seed):
    levels = (0.0, *np.random.default_rng(seed).uniform(0, 0.9, 6).round(4).tolist(), 0.0)
    child = WIDE.candidate(WIDE.pruned(MERGE, np.array(levels)))
    found = drawn(child, seed=seed)
    assert 4 < len(found) <= 7
    assert len({*found, child}) == 1 + len(found)
    for other in found:
        assert other == Cast(replace(child.input, sparsity=other.input.sparsity), "float32")
        row = np.array(other.input.sparsity)
        assert (row >= 0).all()
        assert (row <= WIDE.most).all()
        assert row[[0, 7]].tolist() == [0, 0]
        assert abs(((row - child.input.sparsity) * WIDE.sizes)[1:7].sum()) <= 0.51e-4 * WIDE.sizes.sum()


@pytest.mark.parametrize("by_tensor", [False, True])
def test_blocks_that_go_stay_away_and_tensors_may_be_the_places(by_tensor):
    ground = replace(WIDE, structured=("blocks",), blocks=tuple(range(1, 7)))
    merge = Prune(MERGE, 1 / 6, scope="blocks", units=((), (), (0,), (), (), ()))
    levels = np.array([0.0, 0.5, 0.4, 0.0, 0.5, 0.6, 0.5, 0.0])
    place = np.array([group for group, _ in WIDE.tensors])
    here = (place > 0) & (place < 7) & (place != 3)
    child = ground.candidate(Prune(merge, tuple(levels[place].tolist())) if by_tensor else ground.pruned(merge, levels))
    found = drawn(child, ground=ground)
    assert len(found) == 7
    sizes = np.array([size for _, size in WIDE.tensors], dtype=float)
    for other in found:
        assert other.input.input == merge
        row = np.array(other.input.sparsity)
        row = row if by_tensor else row[place]
        assert (row[~here] == 0).all()
        assert abs((row - levels[place])[here] @ sizes[here]) <= 0.51e-4 * sizes.sum()


def test_what_goes_whole_last_is_left_alone():
    assert drawn(Cast(Prune(MERGE, (0.0, *[0.25] * 6, 0.0), scope="heads"), "float32")) == ()


def test_half_of_them_move_two_levels_or_few_and_half_move_all():
    child = WIDE.candidate(WIDE.pruned(MERGE, np.full(8, 0.5)))
    moved = [int((np.array(other.input.sparsity)[1:7] != 0.5).sum()) for other in drawn(child, 40)]
    assert all(count in (2, 3, 4, 5, 6) for count in moved)
    assert sum(count == 6 for count in moved) >= 20
    assert sum(count == 2 for count in moved) >= 6


@pytest.mark.parametrize("child", [MERGE, Cast(MERGE, "float32"), Cast(Prune(MERGE, 0.5), "float32"), Expert("math")])
def test_what_allocates_nothing_has_no_other_allocation(child):
    assert drawn(child) == ()


def test_shapes_keep_the_budget_where_levels_reach_their_ends():
    sizes, levels = np.array([0.0, 10.0, 30.0, 60.0]), np.array([0.0, 0.9, 0.1, 0.5])
    for shape in ([0, 5.0, 0.0, 0.0], [0, -5.0, 0.3, 0.2], [9.0, 0, 0, 0], [0, 1e6, -1e6, 0]):
        found = levelled(np.array(shape), sizes, levels, 0.9)
        assert found @ sizes == pytest.approx(levels @ sizes, abs=0.51e-4 * 100)
        assert found[0] == 0
        assert found.min() >= 0
        assert found.max() <= 0.9
    for all_of_them in (0.0, 0.9):
        assert levelled(np.arange(4.0), sizes, np.full(4, all_of_them), 0.9)[1:].tolist() == [all_of_them] * 3


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.screens])
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_pruned_children_are_proposed_with_other_allocations_of_their_budget(name, pace, landscape):
    searcher = ALGORITHMS[name].searcher(assignment(name, pace=pace, allocations=5))
    history = [proposal for proposal, _ in drive(searcher, landscape, 48)]
    assert not any(proposal.alternatives for proposal in history[:12]), (
        "a first population has no allocations to choose"
    )
    pruned = [p for p in history[12:] if isinstance(p.recipe.input, Prune)]
    assert len(pruned) > 20
    for proposal in pruned:
        assert len(proposal.alternatives) <= 4
        assert {each.input.input for each in proposal.alternatives} <= {proposal.recipe.input.input}
    assert sum(len(p.alternatives) for p in pruned) > 2 * len(pruned)
    again = ALGORITHMS[name].searcher(assignment(name, pace=pace, allocations=5))
    assert [proposal for proposal, _ in drive(again, landscape, 48)] == history


def test_one_allocation_changes_no_draw(landscape):
    usual = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMIT, population=12)
    asked = ALGORITHMS["nsga2"].searcher(assignment("nsga2", allocations=1))
    for searcher in (usual, asked):
        assert not any(proposal.alternatives for proposal, _ in drive(searcher, landscape, 36))
    rng, untouched = np.random.default_rng(3), np.random.default_rng(3)
    assert alternatives(WIDE, Cast(MERGE, "float32"), 5, Operators(), rng) == ()
    assert rng.random() == untouched.random()
