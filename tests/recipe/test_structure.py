"""What a candidate lacks as a whole is read from its own prunings."""

from __future__ import annotations

from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.recipe.structure import chain, merged, removed_blocks, units_gone

MERGE = Merge(
    "linear", (Expert("a"), Cast(Prune(Expert("b"), 0.5, scope="blocks", units=((0,), ())), "float32")), (1, 1)
)


def test_a_chain_is_between_cast_and_merge_and_an_inputs_own_is_not_of_it():
    blocks = Prune(MERGE, 0.5, scope="blocks", units=((), (0,)))
    first = Prune(blocks, 0.25, scope="neurons", units=((1, 2), ()))
    second = Prune(first, 0.25, scope="neurons", units=((2, 3), (0,)))
    last = Prune(second, 0.3)
    assert chain(Cast(last, "float32")) == (blocks, first, second, last) == chain(last)
    assert merged(Cast(last, "float32")) == MERGE == merged(MERGE)
    assert removed_blocks(last) == {1}
    assert units_gone(last, "neurons") == ({1, 2, 3}, {0})


def test_what_is_not_resolved_removes_nothing_yet():
    assert chain(Expert("a")) == ()
    assert removed_blocks(Cast(MERGE, "float32")) == frozenset()
    assert units_gone(Prune(MERGE, 0.5, scope="neurons"), "neurons") == ()
