"""Results are bit for bit those recorded. To see all of a difference, or the quickstart: python tests/recorded/record.py."""

from __future__ import annotations

import cases
import pytest
import record

from sae_moo.recipe.methods import METHODS
from sae_moo.searchers.algorithms import ALGORITHMS

FIXTURE = record.recorded()
HERE = record.made_on()
OTHER = [f"{key} {value}, here {HERE[key]}" for key, value in FIXTURE["made on"].items() if HERE[key] != value]
OTHER_LIBRARIES = [text for text in OTHER if not text.startswith(("rounding", "python"))]

same_libraries = pytest.mark.skipif(bool(OTHER_LIBRARIES), reason="recorded with " + "; ".join(OTHER_LIBRARIES))
same_arithmetic = pytest.mark.skipif(
    bool(OTHER_LIBRARIES) or FIXTURE["made on"]["rounding"] != HERE["rounding"],
    reason="recorded with " + "; ".join(OTHER),
)


def test_what_is_recorded_is_there():
    assert set(ALGORITHMS) >= {changes["search"]["algorithm"] for changes in cases.SEARCHES.values()}
    assert set(METHODS) >= {method for method, _, _ in cases.MERGES.values()}
    assert set(FIXTURE["algorithms"]) == set(cases.SEARCHES)


def test_searches_that_are_recorded_are_not_one_search_twice():
    rows = [str(rows) for rows in FIXTURE["algorithms"].values()]
    assert len(set(rows)) == len(rows)


def test_a_row_that_changed_is_missing_or_is_new_is_a_difference():
    assert record.differences([[0, 0.5], [1, 0.25]], [[0, 0.5], [1, 0.25]]) == []
    assert record.differences([[0, 0.5]], [[0, 0.5000000000000001]]) == [
        "recorded [0, 0.5000000000000001], now [0, 0.5]"
    ]
    assert record.differences([], [[0, 0.5]]) == ["recorded [0, 0.5], now nothing"]
    assert record.differences([[0, 0.5]], []) == ["recorded nothing, now [0, 0.5]"]


@same_libraries
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[same_arithmetic] if name in cases.ROUNDED else []) for name in cases.SEARCHES]
)
def test_a_search_gives_the_recorded_trials(tmp_path, name):
    if (package := record.missing(name)) is not None:
        pytest.skip(f"{package} is not installed")
    assert record.differences(record.record_search(tmp_path, name), FIXTURE["algorithms"][name]) == []


@same_arithmetic
@pytest.mark.slow
def test_merges_and_prunings_give_the_recorded_weights(tmp_path):
    now = record.record_weights(tmp_path)
    assert now.keys() == FIXTURE["weights"].keys()
    for name, rows in now.items():
        assert record.differences(rows, FIXTURE["weights"][name]) == [], name


@same_arithmetic
@pytest.mark.slow
@pytest.mark.parametrize("name", cases.EXPORTS)
def test_exports_are_the_recorded_ones(tmp_path, name):
    now = record.record_export(tmp_path, name)
    assert set(now) == {f"{name}, {form}" for form in cases.EXPORTS[name][1]}
    for form, rows in now.items():
        assert record.differences(rows, FIXTURE["exports"][form]) == [], form
