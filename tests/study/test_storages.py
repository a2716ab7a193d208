"""What a study promises wherever it lies: what is written is read again, by a process that knows nothing of the first."""

from __future__ import annotations

import pytest
from scripted_study import Setup
from stand_ins import Landscape

from sae_moo.errors import InputError, Interrupted
from sae_moo.study.journal import create_or_load, describe, only_study, open_storage

STORAGES = ("journal", "sqlite")


@pytest.fixture(params=STORAGES)
def study(request, tmp_path):
    """A function that opens the study anew."""
    where = {"journal": None, "sqlite": f"sqlite:///{tmp_path}/s.db"}[request.param]
    return lambda: Setup(tmp_path / "s.journal", where=where)


@pytest.fixture
def unbroken(tmp_path):
    return Setup(tmp_path / "unbroken").run(18)


def test_a_study_is_the_same_wherever_it_lies(study, unbroken):
    assert study().run(18) == unbroken
    assert study().facts() == unbroken


@pytest.mark.parametrize("at", [1, 8, 17])
def test_what_was_interrupted_goes_on_as_if_it_had_not_been(study, unbroken, at):
    landscape = Landscape()

    def evaluate(recipe, rivals=None):
        if len(landscape.evaluated) == at:
            raise Interrupted("Ctrl-C")
        return landscape(recipe)

    with pytest.raises(Interrupted):
        study().run(18, evaluate=evaluate)
    assert study().run(18) == unbroken


def test_attributes_and_names_of_objectives_are_kept(study):
    first = study()
    opened = open_storage(first.where or first.path, write=True)
    described = create_or_load(opened, "s", first.storage().objectives)
    describe(described, {"models": {"base": "zoo:base", "long": "ü" * 5000}, "seed": 3})
    again = open_storage(first.where or first.path, write=False)
    assert only_study(again) == "s"
    assert study().storage().study.user_attrs["models"] == {"base": "zoo:base", "long": "ü" * 5000}
    assert study().storage().study.metric_names == ["accuracy", "sparsity"]


def test_other_objectives_are_refused(study):
    study().storage()
    first = study()
    with pytest.raises(InputError, match="has the objectives"):
        create_or_load(open_storage(first.where or first.path, write=True), "s", first.storage().objectives[::-1])


def test_looking_makes_nothing(study, tmp_path):
    first = study()
    with pytest.raises(InputError, match="no study at"):
        open_storage(first.where or first.path, write=False)
    assert not list(tmp_path.iterdir())
