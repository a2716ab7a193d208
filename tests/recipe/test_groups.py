from __future__ import annotations

from sae_moo.recipe.groups import EMBEDDINGS, HEAD, block, in_block, model_order


def test_groups_stand_in_the_order_of_the_model():
    order = [EMBEDDINGS, block(0), block(2), block(10), HEAD]
    shuffled = [order[i] for i in (3, 1, 4, 0, 2)]
    assert sorted(shuffled, key=model_order) == order
    assert [in_block(group) for group in order] == [False, True, True, True, False]
