from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from sae_moo.errors import InputError
from sae_moo.recipe.rows import Rows, number, numbers, rounded

GROUPS = (0, 0, 1, 2, 2)
"""The parameter group of each of five tensors."""


@pytest.mark.parametrize("given", [0.5, 3, True, "l1"])
def test_one_value_holds_everywhere(given):
    rows = Rows.of(given)
    assert [rows.at(i, group, 3) for i, group in enumerate(GROUPS)] == [(given,)] * 5
    assert not rows.placed
    assert rows.numbers == (given,)


def test_a_row_holds_everywhere():
    rows = Rows.of((1.0, 2.0))
    assert {rows.at(i, group, 3) for i, group in enumerate(GROUPS)} == {(1.0, 2.0)}
    assert rows.fits(7)
    assert rows.value == (1.0, 2.0)


def test_as_many_rows_as_groups_are_by_group_others_by_tensor():
    by_group, by_tensor = Rows.of(((0.0,), (1.0,), (2.0,))), Rows.of(tuple((float(i),) for i in range(5)))
    assert [by_group.at(i, group, 3) for i, group in enumerate(GROUPS)] == [(0.0,), (0.0,), (1.0,), (2.0,), (2.0,)]
    assert [by_tensor.at(i, group, 3) for i, group in enumerate(GROUPS)] == [(0.0,), (1.0,), (2.0,), (3.0,), (4.0,)]
    assert by_group.fits(3, 5)
    assert by_tensor.fits(3, 5)
    assert not by_tensor.fits(3)


def test_where_both_fit_the_group_counts():
    rows = Rows.of(((0.0,), (1.0,)))
    assert rows.at(0, 1, 2) == (1.0,)


@pytest.mark.parametrize(
    ("given", "table"),
    [
        (2.0, [[2.0], [2.0]]),
        ((1.0, 3.0), [[1.0, 3.0]] * 2),
        (((1.0, 3.0), (5.0, 7.0)), [[1.0, 3.0], [5.0, 7.0]]),
        (((1.0,), (5.0,), (9.0,)), [[5.0], [5.0]]),
        (((1.0,), (5.0, 7.0)), [[1.0, 1.0], [5.0, 7.0]]),
    ],
)
def test_per_group_rows_by_tensor_count_by_their_mean(given, table):
    found = Rows.of(given).per_group(2)
    assert found.shape == np.shape(table)
    assert found.tolist() == table


def test_a_column_is_what_belongs_to_one_input():
    assert list(Rows.of(((1.0, 2.0), (3.0,), (4.0, 5.0))).column(1)) == [2.0, 3.0, 5.0]


def test_sparsities_are_one_or_by_group():
    assert [Rows.of_places(0.5).of_group(group) for group in range(3)] == [0.5] * 3
    assert [Rows.of_places((0.1, 0.2, 0.3)).of_group(group) for group in range(3)] == [0.1, 0.2, 0.3]
    assert Rows.of_places((0.1,)).placed
    assert not Rows.of_places(0.1).placed
    assert Rows.of_places((0.1, 0.2)).numbers == (0.1, 0.2)


@pytest.mark.parametrize(
    ("rows", "shortest"),
    [
        ([(1.0,)] * 5, Rows(((1.0,),), placed=False)),
        ([(1.0,), (1.0,), (2.0,), (3.0,), (3.0,)], Rows(((1.0,), (2.0,), (3.0,)), placed=True)),
        ([(float(i),) for i in range(5)], Rows(tuple((float(i),) for i in range(5)), placed=True)),
    ],
)
def test_gathered_rows_are_the_shortest_that_say_the_same(rows, shortest):
    gathered = Rows.gathered(rows, GROUPS)
    assert gathered == shortest
    assert [gathered.at(i, group, 3) for i, group in enumerate(GROUPS)] == rows


def test_what_is_written_is_read_back():
    for value in ((1.0, 2.0), ((1.0, 2.0), (3.0, 4.0)), ((1.0,),)):
        assert Rows.of(value).value == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_recipe_holds_finite_numbers_only(value):
    with pytest.raises(ValueError, match="expected a finite number"):
        rounded(value)
    with pytest.raises(InputError, match="here: expected a finite number"):
        number(value, "here")


def test_numbers_are_read_from_anything_that_is_one():
    assert number(np.float32(0.5), "here") == 0.5
    assert numbers(np.array([[1.0, 2.0]]), "here") == ((1.0, 2.0),)
    assert numbers((1, 2), "here") == (1.0, 2.0)
    assert str(rounded(-0.0)) == "0.0"
    with pytest.raises(InputError, match="here: expected a number, got 'x'"):
        numbers(["x", 1], "here")
    with pytest.raises(InputError, match="here: expected numbers or rows"):
        numbers(3, "here")


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(False), "1", b"1"])
def test_a_truth_value_or_a_text_is_no_number(value):
    for given in ([0.5, value], [[0.5, value], [0.5, 0.5]]):
        with pytest.raises(InputError, match="here: expected a number, got"):
            numbers(given, "here")
    with pytest.raises(InputError, match="here: expected a number, got"):
        number(value, "here")


@pytest.mark.parametrize("row", [(1e308, 1e308, -1e308), (-0.0, 0.1), (0.1, 1), (1 / 3, 2e-310), ()])
def test_a_row_is_what_its_numbers_are(row):
    wanted = tuple(number(value, "here") for value in row)
    for given, expected in ((row, wanted), ([row, row], (wanted, wanted))):
        assert repr(numbers(given, "here")) == repr(expected)


@pytest.mark.parametrize("wrong", ["0.5", math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [(), (0.1,), (math.inf, 0.2)])
def test_one_that_is_no_number_among_ordinary_ones_is_refused(wrong, others):
    with pytest.raises(InputError, match=r"here: expected a (finite )?number"):
        numbers((*others, wrong), "here")


@pytest.mark.parametrize("row", [{0.5: 1, 0.25: 2}, {0.5, 0.25}, b"ab", bytearray(b"ab"), "12"], ids=repr)
def test_what_has_no_order_and_text_are_no_rows(row):
    for given in (row, [row, row], [row, [0.5, 0.5]]):
        with pytest.raises(InputError, match=r"here: expected (a number|numbers or rows of numbers), got"):
            numbers(given, "here")


@pytest.mark.parametrize("rows", [[(0.5, 1), (0.1, 0.2)], [(0.5,), [0.25]], [(), ()], [(0.5, 1), (0.1,)]])
def test_rows_may_be_of_any_length(rows):
    expected = tuple(tuple(float(value) for value in row) for row in rows)
    assert numbers(rows, "here") == expected
    assert numbers(tuple(map(tuple, rows)), "here") == expected
    if len(set(map(len, rows))) == 1:
        assert numbers(np.array(rows), "here") == expected


def test_numbers_in_rows_are_rounded_as_single_ones():
    rng = random.Random(0)
    for _ in range(3000):
        short, size = rng.randint(-(10**10), 10**10) / 1e4, 10.0 ** rng.randint(-12, 300)
        values = [short, math.nextafter(short, math.inf), rng.uniform(-2, 2), rng.uniform(-size, size), -0.0, 0.00005]
        assert list(map(repr, numbers(values, "here"))) == [repr(rounded(value)) for value in values]
