from __future__ import annotations

import pytest
import torch
from stand_ins import weights_of

from sae_moo.errors import InputError
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.prepare import prepared
from sae_moo.recipe import Cast, Expert, Merge, Prune

MATH, CODE = Expert("math"), Expert("code")
PARENT = Cast(Prune(Merge("rankmean", (MATH, CODE), (1, 2)), 0.5, scope="global"), "float32")


def test_what_is_prepared_is_checked_resolved_and_gives_the_weights_that_are_written(tiny, tiny_model):
    ready = prepared(PARENT, tiny)
    report = materialize(PARENT, tiny, tiny_model)
    assert ready.recipe == report.recipe != PARENT
    written = weights_of(tiny, tiny_model)
    assert all(torch.equal(ready.plan.tensor(info), written[info.name]) for info in tiny.tensors)
    with pytest.raises(InputError, match="no expert named 'maths'"):
        prepared(Expert("maths"), tiny)


@pytest.mark.parametrize(("room", "held"), [(3, True), (2, False)])
def test_a_parent_that_the_cache_lacks_is_held_where_three_models_fit(tiny, room, held):
    size = sum(info.numel for info in tiny.tensors) * 4
    cache = WeightCache(room * size)
    child = Cast(Merge("linear", (prepared(PARENT, tiny).recipe, CODE), (1, 1)), "float32")
    prepared(child, tiny, cache=cache, model_bytes=size)
    assert [node in cache for node in child.input.inputs] == [held, False]
