from __future__ import annotations

import pytest

from sae_moo.errors import InputError
from sae_moo.evaluate.splits import deal

TEXTS = [f"item {i % 40}" for i in range(50)]  # ten stand twice


def test_both_splits_of_one_pool_share_no_text_and_take_the_first_of_equal_ones():
    dealt = deal("t", TEXTS, None, 25, 15)
    assert len({TEXTS[i] for split in dealt.values() for i in split}) == 40
    assert max(i for split in dealt.values() for i in split) < 40
    assert deal("t", TEXTS, None, 5, 15)["test"] == dealt["test"]
    assert deal("t", TEXTS, None, 5, 15)["search"] == dealt["search"][:5]


def test_what_may_be_tested_on_is_never_searched_on_though_it_was_not_chosen():
    tested = [f"item {i}" for i in range(30, 60)]
    dealt = deal("t", TEXTS, tested, 30, 1)
    assert sorted(dealt["search"]) == list(range(30))
    assert len(dealt["test"]) == 1


@pytest.mark.parametrize(
    ("pool", "tested", "search", "test", "message"),
    [
        (TEXTS, None, 30, 11, "asked for 30 search and 11 test instances, 41 in all; it has 40 different items"),
        (TEXTS, TEXTS[:3], 5, 4, "asked for 4 test instances; it has 3 different items"),
        (TEXTS, TEXTS[:30], 11, 4, "asked for 11 search instances; it has 10 different items that are not among"),
    ],
)
def test_more_than_there_is(pool, tested, search, test, message):
    with pytest.raises(InputError, match=message):
        deal("t", pool, tested, search, test)
