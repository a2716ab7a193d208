"""What a ground asks of pruning, scope by scope."""

from __future__ import annotations

import numpy as np
import pytest

from sae_moo.recipe import Expert, Prune
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.space import CoefficientSpace

MATH = Expert("math")


def ground(**changes) -> Ground:
    return Ground(("math", "code"), (False, True, True, False), **changes)


@pytest.mark.parametrize(
    ("changes", "asked", "given"),
    [
        ({}, (0.9, 0.2, 0.6, 0.9), (0.0, 0.2, 0.6, 0.0)),
        ({"scope": "row"}, (0.9, 0.2, 0.6, 0.9), (0.0, 0.2, 0.6, 0.0)),
        ({"scope": "global"}, (0.9, 0.2, 0.6, 0.9), 0.4),
        ({"scope": "neurons"}, (0.9, 0.2, 0.6, 0.9), 0.4),
        ({"scope": "heads"}, (0.9, -0.2, 2.0, 0.9), 0.475),
        ({"granularity": "model"}, (0.9, 0.2, 0.6, 0.9), 0.4),
        ({"scope": "2:4"}, (0.9, 0.2499, 0.25, 0.9), (0.0, 0.0, 0.5, 0.0)),
        ({"scope": "1:4", "most": 0.5}, (0.9, 0.3, 0.9, 0.9), (0.0, 0.0, 0.75, 0.0)),
        ({"scope": "2:4", "granularity": "model"}, (0, 0.2, 0.6, 0), 0.5),
        ({"scope": "2:4"}, (0.9, 0.2, 0.2, 0.9), None),
        ({"scope": "neurons"}, (0.9, 0.0, -1.0, 0.9), None),
    ],
)
def test_what_is_asked(changes, asked, given):
    recipe = ground(**changes).pruned(MATH, np.array(asked))
    if given is None:
        assert recipe is MATH
    else:
        assert recipe == Prune(MATH, given, scope=changes.get("scope", "tensor"))


def test_sizes_are_those_of_the_tensors_of_a_group_and_alike_where_these_are_not_known():
    assert ground().sizes.tolist() == [0, 1, 1, 0]
    assert ground(tensors=((0, 0), (1, 40), (1, 2), (2, 7), (2, 0), (3, 0))).sizes.tolist() == [0, 42, 7, 0]


def test_the_calibration_is_bound_in():
    norms = "ab" * 32
    recipe = ground(criterion="wanda", scope="row", calibration=norms).pruned(MATH, np.full(4, 0.3))
    assert recipe == Prune(MATH, (0, 0.3, 0.3, 0), "wanda", "row", calibration=norms)


@pytest.mark.parametrize(
    ("changes", "ratios"), [({}, 2), ({"scope": "row"}, 2), ({"scope": "neurons"}, 1), ({"granularity": "model"}, 1)]
)
def test_vectors_hold_as_many_ratios_as_count(changes, ratios):
    space = CoefficientSpace(ground(**changes))
    assert space.n_var == space.weights + ratios
