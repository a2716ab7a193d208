"""What a token costs of a structure, from a few measured numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sae_moo.errors import InputError
from sae_moo.evaluate.costs import CostTable, Widths, fitted
from sae_moo.recipe import Cast, Expert, Prune

WIDTHS = {"neurons": Widths((1, 4, 8), (0.5, 0.8, 1.0)), "heads": Widths((1, 2), (0.6, 1.0))}
TABLE = CostTable(4, 2.0, 1.0, WIDTHS, {"machine": "m"})
EXPERT = Expert("math")


def without(recipe, scope, *rows):
    return Prune(recipe, 0.25, scope=scope, units=rows)


def test_a_block_less_is_its_time_less():
    assert TABLE.speed(Cast(EXPERT, "float32")) == 1.0
    assert TABLE.speed(Cast(without(EXPERT, "blocks", (), (0,), (), ()), "float32")) == round(6 / 5, 6)
    assert TABLE.speed(without(EXPERT, "blocks", (0,), (0,), (0,), ())) == round(6 / 3, 6)


@pytest.mark.parametrize("scope", ["tensor", "row", "2:4"])
def test_scattered_zeros_change_nothing(scope):
    assert TABLE.speed(Cast(Prune(EXPERT, 0.5, scope=scope), "float32")) == 1.0


def test_experts_of_a_mixture_change_nothing():
    assert TABLE.speed(without(EXPERT, "moe-experts", (0,), (0,), (0,), (0,))) == 1.0


def test_widths_between_those_measured_lie_on_a_line():
    assert TABLE.speed(without(EXPERT, "neurons", *[(0, 1)] * 4)) == round(6 / (2 + 4 * 0.9), 6)
    assert TABLE.speed(without(EXPERT, "heads", *[(1,)] * 4)) == round(6 / (2 + 4 * 0.6), 6)


def test_what_fewer_neurons_and_fewer_heads_save_is_added():
    both = without(without(EXPERT, "neurons", *[(0, 1, 2, 3)] * 4), "heads", *[(0,)] * 4)
    assert TABLE.speed(both) == round(6 / (2 + 4 * (1 - 0.2 - 0.4)), 6)


def test_where_blocks_are_padded_the_widest_of_those_that_stay_counts():
    rows = [(0, 1, 2, 3), (), (0, 1, 2, 3), (0, 1)]
    uneven = without(EXPERT, "neurons", *rows)
    assert TABLE.speed(uneven) == 1.0
    own = CostTable(4, 2.0, 1.0, {"neurons": replace(WIDTHS["neurons"], each=True)}, {})
    assert own.speed(uneven) == round(6 / (2 + 0.8 + 1 + 0.8 + 0.9), 6)
    gone = without(without(EXPERT, "blocks", (), (0,), (), ()), "neurons", *rows)
    assert TABLE.speed(gone) == round(6 / (2 + 3 * 0.9), 6), "the whole block is not there"
    assert own.speed(gone) == round(6 / (2 + 0.8 + 0.8 + 0.9), 6)


@pytest.mark.parametrize(("each", "gone"), [(True, (3, 3, 3, 3)), (False, (3, 3, 3, 3)), (True, (4, 3, 4, 4))])
def test_what_no_configuration_can_say_is_as_wide_as_the_next_that_one_can(each, gone):
    able = {"neurons": replace(WIDTHS["neurons"], each=each, able=(1, 4, 6, 8))}
    table = CostTable(4, 2.0, 1.0, able, {})
    lacking = without(EXPERT, "neurons", *[tuple(range(count)) for count in gone])
    assert table.speed(lacking) == TABLE.speed(without(EXPERT, "neurons", *[(0, 1)] * 4))


def test_a_unit_stays_of_a_block_that_would_have_none():
    none, one = (without(EXPERT, "neurons", *[tuple(range(count))] * 4) for count in (8, 7))
    assert TABLE.speed(none) == TABLE.speed(one) == round(6 / (2 + 4 * 0.5), 6)


def test_only_what_the_candidate_itself_lacks_counts():
    parent = Cast(without(EXPERT, "blocks", (0,), (), (), ()), "float32")
    assert TABLE.speed(Cast(Prune(parent, 0.5), "float32")) == 1.0


def test_a_table_is_read_again_bit_for_bit():
    table = CostTable(
        3, 0.1 + 0.2, 1 / 3, {"neurons": Widths((1, 9), (1 / 7, 1 / 3), True, (1, 9))}, {"versions": "torch"}
    )
    assert CostTable.read(json.loads(json.dumps(table.document()))) == table


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 0},
        {"block": 0.0},
        {"outside": -1.0},
        {"outside": float("nan")},
        {"widths": {"neurons": {"units": [4, 1], "seconds": [0.9, 1.0], "each": False, "able": []}}},
        {"widths": {"neurons": {"units": [1, 4], "seconds": [0.9, 0.8], "each": False, "able": []}}},
        {"widths": {"neurons": {"units": [1, 4], "seconds": [0.9], "each": False, "able": []}}},
        {"widths": {"neurons": {"units": [1, 4], "seconds": [0.9, 1.0], "each": False, "able": [4, 1]}}},
        {"widths": {"neurons": {"units": [], "seconds": [], "each": False, "able": []}}},
        {"widths": {"neurons": {"units": [1, 4], "seconds": [0.9, 1.0]}}},
        {"widths": {"neurons": 3}},
        {"origin": None},
    ],
)
def test_a_damaged_table_is_refused(change):
    with pytest.raises(InputError, match="what a token costs is damaged"):
        CostTable.read({**TABLE.document(), **change})
    with pytest.raises(InputError, match="what a token costs is damaged"):
        CostTable.read([change])


def test_times_say_what_is_outside_and_what_a_block_takes():
    outside, block, widths = fitted({2: 4.0, 4: 6.0}, {"neurons": {1: 4.0, 4: 5.0}}, {"neurons": 8})
    assert (outside, block) == (2.0, 1.0)
    assert widths == {"neurons": Widths((1, 4, 8), (0.5, 0.75, 1.0))}


@pytest.mark.parametrize(
    ("times", "narrow"),
    [
        ({2: 4.0, 4: 3.9}, {1: 5.0, 4: 1.0}),  # more blocks seem faster, fewer neurons slower
        ({2: 1.0, 4: 6.0}, {1: 7.0, 4: 8.0}),  # nothing would be left outside
        ({1: 1e-9, 2: 1.0}, {4: 0.0}),
    ],
)
def test_noise_makes_no_table_that_contradicts_itself(times, narrow):
    outside, block, widths = fitted(times, {"neurons": narrow}, {"neurons": 8})
    table = CostTable(6, outside, block, widths, {})
    assert CostTable.read(table.document()) == table
    speeds = [table.speed(without(EXPERT, "neurons", *[tuple(range(gone))] * 6)) for gone in range(8)]
    assert speeds == sorted(speeds)
    assert speeds[0] == 1.0
