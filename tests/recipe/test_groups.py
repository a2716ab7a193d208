from __future__ import annotations

import pytest

from sae_moo.recipe.groups import EMBEDDINGS, HEAD, block, in_block, model_order, thirds


def test_groups_stand_in_the_order_of_the_model():
    order = [EMBEDDINGS, block(0), block(2), block(10), HEAD]
    shuffled = [order[i] for i in (3, 1, 4, 0, 2)]
    assert sorted(shuffled, key=model_order) == order
    assert [in_block(group) for group in order] == [False, True, True, True, False]


def test_thirds_of_a_depth_are_as_large_lie_in_the_middle_and_are_never_empty():
    assert [list(part) for part in thirds(6)] == [[0, 1], [2, 3], [4, 5]]
    assert [list(part) for part in thirds(4)] == [[0, 1], [1, 2], [2, 3]]
    assert [list(part) for part in thirds(1)] == [[0], [0], [0]]
    for count in range(1, 30):
        early, middle, late = (list(part) for part in thirds(count))
        assert early == [count - 1 - i for i in reversed(late)]
        assert middle == [count - 1 - i for i in reversed(middle)]
        assert len(early) == -(-count // 3)
        assert len(middle) - len(early) in (0, 1)
        assert {*early, *middle, *late} == set(range(count))
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        thirds(0)
