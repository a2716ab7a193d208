from __future__ import annotations

import pytest

from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.recipe.mixing import mixing_weights

NAMES = ("base", "a", "b")
A, B = Expert("a"), Expert("b")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (A, (0, 1, 0)),
        (Merge("linear", (A, B), (1, 3)), (0, 0.25, 0.75)),
        (Merge("task_arithmetic", (A, B), (0.5, 0.25)), (0.25, 0.5, 0.25)),
        (Merge("task_arithmetic", (A, B), (1, 1), {"scale": 0.5}), (0, 0.5, 0.5)),
        (Merge("zero_aware", (A, B), (1, 1), {"scale": 1.2}), (-0.2, 0.6, 0.6)),
        (Merge("linear", (A, B), ((1, 0), (0, 1))), (0, 0.5, 0.5)),
        (
            Cast(Prune(Merge("linear", (Merge("linear", (A, B), (1, 1)), Expert("base")), (1, 1)), 0.5), "float32"),
            (0.5, 0.25, 0.25),
        ),
    ],
)
def test_known_mixtures(recipe, expected):
    weights = mixing_weights(recipe, NAMES, 2)
    assert weights.mean(axis=0).tolist() == pytest.approx(expected)
    assert weights.sum(axis=1).tolist() == pytest.approx([1.0, 1.0])


def test_groups_have_coefficients_of_their_own():
    inner = Merge("task_arithmetic", (A, B), ((0.5, 0.25), (1, 0)))
    recipe = Prune(Merge("zero_aware", (inner, B), ((1, 1), (0, 1)), {"scale": ((2.0,), (0.5,))}), (0.5, 0.0))
    assert mixing_weights(recipe, NAMES, 2).tolist() == [pytest.approx([-0.75, 0.5, 1.25]), [0.5, 0.0, 0.5]]
    by_tensor = Merge("linear", (A, B), ((1, 0), (0, 1), (0, 1), (1, 1)))
    assert mixing_weights(by_tensor, NAMES, 2).tolist() == [[0.0, 0.4, 0.6]] * 2


def test_a_child_costs_only_its_own_nodes():
    memo = {}
    recipe = A
    for _ in range(2000):
        recipe = Cast(Merge("linear", (recipe, B), (0.9, 0.1)), "float32")
    mixing_weights(recipe, NAMES, 1, memo)
    before = len(memo)
    mixing_weights(Cast(Merge("linear", (recipe, A), (0.5, 0.5)), "float32"), NAMES, 1, memo)
    assert len(memo) == before + 1, "only candidates are held"
