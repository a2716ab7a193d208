"""The merge method of each child, drawn by what children of each have gained."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from sae_moo.objectives import Evaluation, Sparsity, TaskMean
from sae_moo.recipe import Merge, walk
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.methods import LIKELY, METHOD, MethodChoice
from sae_moo.searchers.searcher import Proposal
from sae_moo.testing.searchers import GROUND, NAMES, Landscape, assignment, drive

OBJECTIVES = (TaskMean("a", ("a",)), Sparsity())
NAMED = ("task_arithmetic", "dare_linear", "breadcrumbs_ties")


class Favouring(Landscape):
    """Merges by one method score more than others, and more each time."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def __call__(self, recipe, _rivals=None):
        found = super().__call__(recipe)
        merges = [node for node in walk(recipe) if isinstance(node, Merge)]
        good = bool(merges) and merges[-1].method == self.method
        level = min(0.999, 0.3 + good * (0.2 + 0.002 * len(self.evaluated)))
        return Evaluation(recipe, dict.fromkeys(found.scores, (level,) * 3), found.sparsity, found.group_sparsity)


def children(models, count=200, **settings):
    made = ALGORITHMS["nsga2"].searcher(assignment("nsga2", {"operators": settings}))
    return [proposal for proposal, _ in drive(made, models, count) if proposal.generation > 0]


def method_of(proposal):
    return next(node for node in reversed(list(walk(proposal.recipe))) if isinstance(node, Merge)).method


@pytest.mark.parametrize("favourite", [0, 2])
def test_the_method_whose_children_gain_most_makes_most(favourite):
    made = children(Favouring(NAMED[favourite]), methods=[*NAMED[1:]])
    for proposal in made:
        assert method_of(proposal) == NAMED[int(proposal.numbers[METHOD])]
        assert 0.05 <= proposal.numbers[LIKELY] <= 0.9 + 1e-9
    late = [proposal.numbers[METHOD] for proposal in made[-60:]]
    assert late.count(favourite) > 0.6 * len(late)
    assert set(late) != {favourite}, "the others are tried on"


def test_a_child_has_the_mixing_weights_that_its_parents_gave_it_whatever_method_makes_it():
    weights = np.array([[0.5, 0.25, 0.0]] * 4)
    for method, settings, _ in (MethodChoice(NAMED, OBJECTIVES, ()).drawn(np.random.default_rng(i)) for i in range(9)):
        merged = GROUND.summed(method, weights, settings)
        np.testing.assert_allclose(mixing_weights(merged, NAMES, 4)[:, 1:], weights)


def test_a_method_is_credited_with_its_own_childs_gain_alone():
    choice = MethodChoice(NAMED, OBJECTIVES, ())

    def tell(level, numbers):
        recipe = GROUND.expert("math")
        choice.tell(Proposal(recipe, numbers=numbers), Evaluation(recipe, {"a": (level,)}, 0.5))

    tell(0.2, {})
    assert choice.bandit.estimates == [None] * 3
    tell(0.6, {METHOD: 2.0})
    assert choice.bandit.estimates == [None, None, pytest.approx(0.4 * 0.5)]
    tell(0.5, {METHOD: 1.0})
    assert choice.bandit.estimates[1] == 0.0


def test_without_others_nothing_is_drawn_and_nothing_told():
    made = children(Landscape(), count=30)
    assert {method_of(proposal) for proposal in made} == {"task_arithmetic"}
    assert not any(METHOD in proposal.numbers for proposal in made)
    assert "methods" in Operators().unsaid


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"methods": ["ties"]}, r"that add any number of task vectors \(.*breadcrumbs.*got 'ties'"),
        ({"methods": ["slurp"]}, "expected a merge method"),
        ({"methods": ["task_arithmetic"]}, "is among them anyway"),
        ({"methods": ["dare_ties", "dare_ties"]}, "came before"),
        ({"methods": ["dare_ties"], "remerge": 0.0}, "with remerge: 0 there are none"),
    ],
    ids=str,
)
def test_what_cannot_make_children_is_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        Operators(**settings)
