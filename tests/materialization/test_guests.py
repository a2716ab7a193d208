"""Merge methods and pruning criteria of installed packages, through everything that happens to a recipe."""

from __future__ import annotations

import json
import pickle

import acme_package
import pytest
import torch
from stand_ins import weights_of

from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.deploy.surroundings import recipe_document
from sae_moo.errors import InputError, WeightsError
from sae_moo.materialization.check import check
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe, decode, encode, guests_of
from sae_moo.recipe.catalogue import Guest, OtherGuest
from sae_moo.recipe.mixing import mixing_weights

MATH, CODE, LAW = Expert("math"), Expert("code"), Expert("law")
THREE = (MATH, CODE, LAW)
HOUSE = Cast(Prune(Merge("zero_aware", (MATH, CODE), (0.3, 0.7), {"scale": 1.2}), 0.5, scope="2:4"), "float32")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The package is installed; call it to have another version, or none."""
    folder = tmp_path / "site-packages"
    acme_package.install(folder, monkeypatch)
    return lambda version: acme_package.install(folder, monkeypatch, version)


def median(**params) -> Recipe:
    return Cast(Merge("acme/median", THREE, (1.0, 1.0, 1.0), params), "float32")


@pytest.mark.parametrize("pull", [0.0, 0.25, "by group"])
def test_a_guests_method_merges_and_its_settings_may_differ_by_group(packages, tiny, tiny_model, pull):
    pulls = [0.25 * (group % 3) if pull == "by group" else pull for group in range(len(tiny.groups))]
    materialize(median(pull=tuple((p,) for p in pulls) if pull == "by group" else pull), tiny, tiny_model)
    for info in tiny.tensors:
        middle = torch.stack([tiny.load(name, info.name) for name in ("math", "code", "law")]).median(dim=0).values
        wanted = middle + (tiny.load("base", info.name) - middle) * pulls[info.group]
        assert torch.equal(tiny.parameters(tiny_model)[info.name], wanted)


def test_what_it_measures_on_whole_models_is_written_into_the_recipe(packages, tiny, tiny_model):
    report = materialize(Cast(Merge("acme/loudest", THREE, (1, 1, 1)), "float32"), tiny, tiny_model)
    rows = dict(report.recipe.input.params)["loudest"]
    assert len(rows) == len(tiny.tensors)
    for info, row in zip(tiny.tensors, rows, strict=True):
        assert sum(row) == 1.0
        loudest = ("math", "code", "law")[row.index(1.0)]
        assert torch.equal(tiny.parameters(tiny_model)[info.name], tiny.load(loudest, info.name))
    assert resolve(report.recipe, tiny) is report.recipe


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (median(pull=1.5), r"acme/median: pull: expected a share in \[0, 1\], got 1.5"),
        (median(pul=0.5), r"acme/median: no setting 'pul' \(did you mean 'pull'\?\); there are: pull"),
        (Merge("acme/medan", THREE, (1, 1, 1)), r"acme 1\.2 has no 'medan' \(did you mean 'median'\?\)"),
        (Merge("acme/gone", THREE, (1, 1, 1)), r"merge method 'acme/gone': acme 1\.2 names acme:nothing, which cannot"),
        (Prune(MATH, 0.5, "acme/fisher"), "criterion 'acme/fisher' needs gradients, which nothing here computes yet"),
        (Prune(MATH, 0.5, "acme/active"), r"criterion 'acme/active' weighs by activations: give it the digest"),
        (Prune(MATH, 0.5, "acme/relative", calibration="0" * 64), "criterion 'acme/relative' needs no calibration"),
    ],
)
def test_what_a_guest_cannot_do_is_refused_before_anything_is_written(packages, tiny, recipe, message):
    with pytest.raises(InputError, match=message):
        check(recipe, tiny)


def test_what_a_guest_raises_ends_one_evaluation_with_its_name(packages, tiny, tiny_model):
    with pytest.raises(WeightsError, match=r"merge method acme/broken: acme 1\.2 failed: KeyError: 'nowhere'"):
        materialize(Merge("acme/broken", THREE, (1, 1, 1)), tiny, tiny_model)
    with pytest.raises(WeightsError, match=r"acme:negative: expected finite scores of at least 0, got"):
        materialize(Prune(MATH, 0.5, "acme/negative"), tiny, tiny_model)


def relative(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.abs() / matrix.abs().sum(dim=1, keepdim=True) + matrix.abs() / matrix.abs().sum(dim=0)


@pytest.mark.parametrize("scope", ["tensor", "row", "2:4", "group", "global", "neurons"])
def test_a_guests_criterion_prunes_what_it_scores_lowest(packages, tiny, tiny_model, scope):
    report = materialize(Cast(Prune(MATH, 0.5, "acme/relative", scope), "float32"), tiny, tiny_model)
    pruned = weights_of(tiny, tiny_model)
    if scope != "neurons":
        assert report.sparsity == pytest.approx(0.5, abs=0.01)
    for info in tiny.tensors if scope in ("tensor", "row", "2:4") else ():
        if not info.prunable:
            continue
        scores, gone = relative(tiny.load("math", info.name)), pruned[info.name] == 0
        rows = {"tensor": (1, -1), "row": (info.shape[0], -1), "2:4": (-1, 4)}[scope]
        scores, gone = scores.reshape(rows), gone.reshape(rows)
        assert gone.sum(dim=1).unique().tolist() == [scores.shape[1] // 2]
        assert (scores.masked_fill(~gone, 0).amax(dim=1) <= scores.masked_fill(gone, 9).amin(dim=1)).all()
    assert resolve(report.recipe, tiny) is report.recipe


def test_rescaled_what_a_guest_leaves_keeps_the_norm(packages, tiny, tiny_model):
    materialize(Cast(Prune(MATH, 0.5, "acme/relative", "row", rescale=True), "float32"), tiny, tiny_model)
    for info in tiny.tensors:
        norms = [tensor.norm() for tensor in (tiny.load("math", info.name), tiny.parameters(tiny_model)[info.name])]
        torch.testing.assert_close(*norms)


def test_a_recipe_of_the_houses_own_has_the_digest_it_always_had(packages, tiny):
    fingerprints = {"base": "a" * 64, "math": "b" * 64, "code": "c" * 64}
    digests = {HOUSE.digest(type("Pool", (), {"fingerprints": fingerprints}))}
    assert digests == {"a51d2c9f28dff20e284a83e3f53420dc1d35b7a6534bfbb1138eefd676bf61f9"}
    assert "guests" not in encode(HOUSE)


def test_package_and_version_are_part_of_the_digest(packages, tiny):
    recipe, pruned = median(), Prune(MATH, 0.5, "acme/relative")
    assert guests_of(recipe) == {"acme/median": Guest("acme", "1.2")}
    assert guests_of(Merge("acme/median", (pruned, CODE), (1, 1))) == {
        "acme/median": Guest("acme", "1.2"),
        "acme/relative": Guest("acme", "1.2"),
    }
    before = recipe.digest(tiny), pruned.digest(tiny), HOUSE.digest(tiny)
    packages("1.3")
    after = recipe.digest(tiny), pruned.digest(tiny), HOUSE.digest(tiny)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]
    packages("1.2")
    assert (recipe.digest(tiny), pruned.digest(tiny)) == before[:2]


def test_one_package_has_one_spelling(packages, tiny):
    assert Merge("Acme/median", THREE, (1, 1, 1)) == Merge("acme/median", THREE, (1, 1, 1))
    assert Prune(MATH, 0.5, "ACME/relative") == Prune(MATH, 0.5, "acme/relative")


def test_a_recipe_is_read_where_the_same_version_is_installed(packages, tiny):
    document = json.loads(json.dumps(recipe_document(median(pull=0.5), tiny)))
    assert document["guests"] == {"acme/median": "acme 1.2"}
    assert decode(document) == median(pull=0.5)
    assert pickle.loads(pickle.dumps(median())) == median()
    packages("1.3")
    with pytest.raises(OtherGuest, match=r"'acme/median' was used as of acme 1\.2, here is acme 1\.3, .*acme==1\.2"):
        decode(document)
    packages(None)
    with pytest.raises(OtherGuest, match=r"'acme/median' needs the package acme 1\.2, which is not installed here"):
        decode(document)
    with pytest.raises(InputError, match="'acme/median' needs the package 'acme', which is not installed here"):
        median().digest(tiny)


def test_a_lineage_that_is_stored_elsewhere_names_its_guests_there(packages, tiny):
    parent, child = median(), Cast(Merge("linear", (median(), CODE), (1, 1)), "float32")
    document = encode(child, {parent: "x"})
    assert "guests" not in document
    assert decode(document, {"x": parent}) == child
    assert encode(child)["guests"] == {"acme/median": "acme 1.2"}


@pytest.mark.parametrize("guests", [["acme"], {"acme/median": 1.2}, "acme"])
def test_guests_that_are_none_are_refused(guests):
    document = encode(MATH) | {"guests": guests}
    with pytest.raises(InputError, match=r'expected "guests": \{NAME: "PACKAGE VERSION"\}'):
        decode(document)


def test_it_counts_as_a_mean_unless_its_row_says_otherwise(packages, tiny):
    shares = mixing_weights(Merge("acme/median", THREE, (1, 1, 2)), tiny.names, len(tiny.groups))
    assert dict(zip(tiny.names, shares[0].tolist(), strict=True)) == {"base": 0, "math": 0.25, "code": 0.25, "law": 0.5}


def test_mergekit_has_no_such_method_and_says_so(packages, tiny):
    with pytest.raises(InputError, match="mergekit has no merge method 'acme/median'"):
        configuration_text(median(), tiny)
