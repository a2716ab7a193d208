from __future__ import annotations

import importlib.metadata

import pytest
from guests import installed

from sae_moo.errors import InputError
from sae_moo.recipe.catalogue import Catalogue, Guest, Row, resolved

SOURCE = """
from sae_moo.recipe.catalogue import Row

MEAN = Row(name="anything")
WRONG = 3
"""
POINTS = {"sae_moo.test_kinds": {"mean": "MEAN", "wrong": "WRONG", "gone": "NOT_THERE"}}


@pytest.fixture
def kinds() -> Catalogue[Row]:
    return Catalogue("test kind", "sae_moo.test_kinds", Row, [Row(name="median"), Row(name="mode")])


@pytest.fixture
def acme(tmp_path, monkeypatch):
    installed(tmp_path, "Acme.Merging", "1.2", SOURCE, POINTS)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_house_comes_in_the_order_it_was_listed(kinds):
    assert list(kinds) == ["median", "mode"]
    assert len(kinds) == 2
    assert kinds["mode"].guest is None


def test_listing_the_house_reads_no_entry_points(kinds, monkeypatch):
    monkeypatch.setattr("sae_moo.recipe.catalogue.entry_points", lambda **_: pytest.fail("entry points were read"))
    assert list(kinds) == ["median", "mode"]
    assert kinds.find("mode").name == "mode"
    assert "mean" not in kinds
    with pytest.raises(InputError, match="did you mean 'mode'"):
        kinds.find("moda")


@pytest.mark.parametrize("name", ["acme-merging/mean", "Acme.Merging/mean", "acme_merging/mean"])
def test_a_guest_is_found_by_package_and_name(kinds, acme, name):
    row = kinds.find(name)
    assert row.name == "acme-merging/mean"
    assert row.guest == Guest("acme-merging", "1.2")
    assert name in kinds
    assert list(kinds) == ["median", "mode"], "guests are not listed beside the house"


def test_a_guest_never_takes_a_name_of_the_house(kinds, acme):
    assert "mean" not in kinds
    assert kinds["median"].guest is None


def test_a_package_that_is_not_installed_is_named(kinds):
    with pytest.raises(
        InputError, match=r"test kind 'acme-merging/mean' needs the package 'acme-merging', which is not"
    ):
        kinds.find("acme-merging/mean")


def test_a_package_without_that_row_says_what_it_has(kinds, acme):
    with pytest.raises(
        InputError, match=r"acme-merging 1\.2 has no 'meen' \(did you mean 'mean'\?\); it has gone, mean, wrong"
    ):
        kinds.find("acme-merging/meen")


def test_an_installed_package_without_rows_says_so(kinds):
    installed_here = importlib.metadata.version("numpy")
    with pytest.raises(InputError, match=f"numpy {installed_here} has no 'mean'; it has none"):
        kinds.find("numpy/mean")


@pytest.mark.parametrize(
    ("short", "words"), [("wrong", "no Row but int"), ("gone", "cannot be imported: AttributeError")]
)
def test_what_a_guest_gets_wrong_is_told_with_its_name_and_version(kinds, acme, short, words):
    with pytest.raises(InputError, match=rf"test kind 'acme-merging/{short}': acme-merging 1\.2 .*{words}"):
        kinds.find(f"acme-merging/{short}")


@pytest.mark.parametrize("name", ["", "/", "acme-merging/", "/mean", "../mean", "os:system", "a/b/c", 3, None])
def test_what_is_no_name_is_refused_without_importing(kinds, acme, name):
    assert name not in kinds
    with pytest.raises(InputError):
        kinds.find(name)


def test_all_guests_are_listed_on_demand(tmp_path, monkeypatch, kinds):
    installed(tmp_path, "acme", "0.1", SOURCE, {"sae_moo.test_kinds": {"b": "MEAN", "a": "MEAN"}})
    monkeypatch.syspath_prepend(tmp_path)
    assert [row.name for row in kinds.guests()] == ["acme/a", "acme/b"]


def test_a_name_given_twice_is_a_fault_of_the_catalogue():
    with pytest.raises(ValueError, match="every name once"):
        Catalogue("test kind", "sae_moo.test_kinds", Row, [Row(name="a"), Row(name="a")])


def test_an_implementation_is_resolved_from_its_place():
    assert resolved("math:hypot")(3, 4) == 5
