from __future__ import annotations

import pytest

from sae_moo.recipe.criteria import CRITERIA, Criterion


@pytest.mark.parametrize("name", CRITERIA)
def test_every_place_that_a_row_names_is_there(name):
    row = CRITERIA[name]
    assert callable(row.function)
    assert row.summary
    assert row.source
    assert row.unavailable is None


def test_what_a_criterion_needs():
    assert not CRITERIA["magnitude"].calibrated
    assert CRITERIA["wanda"].calibrated
    fisher = Criterion(name="acme/fisher", score="acme:fisher", needs="gradients", summary="")
    assert fisher.unavailable == (
        "criterion 'acme/fisher' needs gradients, which nothing here computes yet; activations can be had"
    )
