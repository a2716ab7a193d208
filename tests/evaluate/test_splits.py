from __future__ import annotations

import pytest

from sae_moo.errors import InputError
from sae_moo.evaluate.splits import Identity, deal, plain, repeated


def items(*texts: str) -> list[Identity]:
    """Items whose prompt is all of them."""
    return [Identity(plain(text), text) for text in texts]


POOL = items(*[f"item {i % 40}" for i in range(50)])  # ten stand twice


def test_both_splits_of_one_pool_share_no_item_and_take_the_first_of_equal_ones(caplog):
    dealt = deal("t", POOL, None, 25, 15)
    assert len({POOL[i] for split in dealt.values() for i in split}) == 40
    assert max(i for split in dealt.values() for i in split) < 40
    assert deal("t", POOL, None, 5, 15)["test"] == dealt["test"]
    assert deal("t", POOL, None, 5, 15)["search"] == dealt["search"][:5]
    assert repeated(POOL) == 10
    assert caplog.messages[0].startswith("10 of 50 items of task t are left out")


def test_what_may_be_tested_on_is_never_searched_on_though_it_was_not_chosen(caplog):
    tested = items(*[f"item {i}" for i in range(30, 60)])
    dealt = deal("t", POOL, tested, 30, 1)
    assert sorted(dealt["search"]) == list(range(30))
    assert len(dealt["test"]) == 1
    assert [message.partition(" of ")[0] for message in caplog.messages] == ["10", "10"]


def test_items_of_one_prompt_are_different_items_and_lie_side_by_side(caplog):
    pool = [Identity(f"question {i % 8}", f"choices {i}") for i in range(40)]
    for search in (5, 10, 20, 40):
        searched = deal("t", pool, None, search, 0)["search"]
        assert len({pool[i].prompt for i in searched}) == search // 5
    assert not caplog.messages
    dealt = deal("t", pool, None, 22, 18)
    prompts = [{pool[i].prompt for i in dealt[split]} for split in ("search", "test")]
    assert len(prompts[0] & prompts[1]) == 1
    assert caplog.messages == ["task t: 2 search and 3 test items have the same prompts and differ in the rest only"]


def test_prompts_that_may_be_tested_on_are_searched_on_only_where_others_do_not_suffice(caplog):
    pool = [Identity(f"question {i}", f"searched {i}") for i in range(20)]
    tested = [Identity(f"question {i}", f"tested {i}") for i in range(15)]
    assert sorted(deal("t", pool, tested, 5, 15)["search"]) == list(range(15, 20))
    assert not caplog.messages
    assert len(deal("t", pool, tested, 20, 15)["search"]) == 20
    assert caplog.messages == ["task t: 15 search and 15 test items have the same prompts and differ in the rest only"]


@pytest.mark.parametrize("one", ["a", "ü", "\u2028", "\ud800", "", "\x00"])
def test_any_text_is_a_prompt(one):
    assert len(deal("t", items(one, one + one, "other"), None, 1, 1)) == 2


@pytest.mark.parametrize(
    ("pool", "tested", "search", "test", "message"),
    [
        (
            POOL,
            None,
            30,
            11,
            "30 search and 11 test instances, 41 in all; it has 40 different items, 10 of its 50 being",
        ),
        (POOL, POOL[:3], 5, 4, "asked for 4 test instances; it has 3 different items"),
        (POOL, POOL[:30], 11, 4, "asked for 11 search instances; it has 10 different items that are not among"),
    ],
)
def test_more_than_there_is(pool, tested, search, test, message):
    with pytest.raises(InputError, match=message):
        deal("t", pool, tested, search, test)
