"""Finishing a search: who of a front is repaired, in which order, and how it is recalled."""

from __future__ import annotations

import pytest
from scripted_study import OBJECTIVES

from sae_moo.objectives import Constraint, Evaluation, Sparsity
from sae_moo.recipe import Cast, Expert, Prune, Repair
from sae_moo.searchers.finishing import REPAIR, Finishing, repaired
from sae_moo.searchers.searcher import Proposal

TEXTS = "ab" * 32


def candidate(sparsity: float) -> Cast:
    return Cast(Prune(Expert("math"), sparsity), "float32")


def told(finishing: Finishing, points, generation=0) -> Finishing:
    for accuracy, sparsity in points:
        recipe = candidate(sparsity)
        evaluation = Evaluation(recipe, {"a": (accuracy,), "b": (accuracy,)}, sparsity)
        finishing.tell(Proposal(recipe, generation=generation), evaluation)
    return finishing


def asked(finishing: Finishing) -> list[float]:
    found = []
    while (proposal := finishing.ask()) is not None:
        (parent,) = proposal.parents
        assert proposal.recipe == Cast(Repair(parent.input, TEXTS), "float32")
        assert proposal.operator == REPAIR
        found.append(parent.input.sparsity)
    return found


FRONT = [(0.9, 0.0), (0.8, 0.3), (0.79, 0.31), (0.6, 0.5), (0.2, 0.7), (0.1, 0.2)]


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0.5]), (2, [0.5, 0.3]), (9, [0.5, 0.3, 0.7, 0.31])])
def test_the_best_spread_come_first_and_the_dense_and_dominated_never(count, expected):
    finishing = told(Finishing(count, lambda: TEXTS, OBJECTIVES), FRONT)
    assert finishing.left == bool(count)
    assert asked(finishing) == expected
    assert (finishing.left, finishing.asked) == (False, len(expected))


def test_a_candidate_that_was_told_twice_is_one_member():
    finishing = told(Finishing(4, lambda: TEXTS, OBJECTIVES), [*FRONT, *FRONT[1:3]])
    equal = Cast(Prune(Expert("code"), 0.5), "float32")
    finishing.tell(Proposal(equal), Evaluation(equal, {"a": (0.6,), "b": (0.6,)}, 0.5))
    finishing = told(finishing, FRONT[3:4])
    assert asked(finishing) == [0.5, 0.3, 0.7, 0.31]
    finishing.count = 5
    assert finishing.ask().parents == (equal,)


def test_a_larger_number_goes_on_and_a_longer_search_repairs_what_is_new():
    finishing = told(Finishing(2, lambda: TEXTS, OBJECTIVES), FRONT)
    first = asked(finishing)
    again = told(Finishing(4, lambda: "cd" * 32, OBJECTIVES), FRONT)
    for sparsity in first:
        proposal = again.recall(repaired(candidate(sparsity), TEXTS))
        assert proposal.recipe == repaired(candidate(sparsity), TEXTS), "as it was repaired then"
    assert again.ask().recipe == repaired(candidate(0.7), "cd" * 32)
    told(finishing, [(0.7, 0.6)], generation=5)
    proposal = finishing.ask()
    assert (proposal.parents[0].input.sparsity, proposal.generation) == (0.6, 5)
    assert finishing.ask() is None, "the second one is done"


def test_repaired_ones_are_no_members_and_limits_hold():
    finishing = told(Finishing(1, lambda: TEXTS, OBJECTIVES, (Constraint(Sparsity(), high=0.4),)), FRONT)
    proposal = finishing.ask()
    assert proposal.parents == (candidate(0.31),)
    finishing.tell(proposal, Evaluation(proposal.recipe, {"a": (1.0,), "b": (1.0,)}, 0.31))
    assert finishing.ask() is None
    assert repaired(proposal.recipe, TEXTS) is None
    assert repaired(Cast(Expert("math"), "float32"), TEXTS) is None
    assert Finishing().ask() is None
    assert not Finishing().left
    with pytest.raises(ValueError, match="expected what returns the digest"):
        Finishing(1)


def test_where_only_blocks_go_what_stays_takes_over():
    fewer = Prune(Expert("math"), 1 / 3, scope="blocks", units=((), (0,), ()))
    assert repaired(Cast(fewer, "float32"), TEXTS) == Cast(Repair(fewer, TEXTS), "float32")
    assert repaired(Cast(Expert("math"), "float32"), TEXTS) is None
