"""A format of an installed package, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import acme_formats
import numpy as np
import pytest
from commands import call, refused
from guests import installed

from sae_moo.experts.checkpoint import Checkpoint


@pytest.fixture(scope="module", autouse=True)
def acme(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    installed(folder, "acme", "1.2", Path(acme_formats.__file__).read_text(), acme_formats.POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("acme", None)


def test_it_is_written_verified_and_named(there, tmp_path):
    export = ("export", "tiny", "--trial", "0", "-o")
    shown = call(*export, f"{tmp_path}/m", "--format", "acme/numpy", "--verify").stdout
    assert "20 tensors read back as computed; all 18 instances of the search split score as in the trial" in shown
    assert f"python -m acme {tmp_path}/m  # looked at" in shown
    call(*export, f"{tmp_path}/dense")
    dense = Checkpoint(str(tmp_path / "dense"))
    for name in dense.tensors:
        assert (np.load(tmp_path / f"m/{name}.npy") == dense.load(name).numpy()).all()
    recipe = json.loads((tmp_path / "m/recipe.json").read_text())
    assert recipe.pop("format") == {"name": "acme/numpy", "distribution": "acme", "version": "1.2"}
    assert recipe == json.loads((tmp_path / "dense/recipe.json").read_text())
    card = (tmp_path / "m/README.md").read_text()
    assert "| format | acme/numpy of acme 1.2, for numpy.load |" in card
    assert "never seen by the search" in card
    assert "To use it" not in card
    call("merge", f"{tmp_path}/m/recipe.json", "-o", f"{tmp_path}/again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "dense/model.safetensors").read_bytes()


def test_what_it_would_take_is_told_after_the_houses(there):
    formats = json.loads(call("export", "tiny", "--trial", "0", "--estimate", "--json").stdout)["formats"]
    found = {each["format"]: each for each in formats}
    assert list(found)[5:] == ["structured", "acme/broken", "acme/careless", "acme/empty", "acme/numpy", "acme/one"]
    assert found["acme/numpy"]["nbytes"] == found["hf"]["nbytes"]
    assert found["acme/numpy"]["gains"].startswith("numpy: all of it; none: ")
    assert (found["acme/one"]["nbytes"], found["acme/one"]["gains"]) == (None, "its size is known once written")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--format", "pakced"), "expected a format, one of hf, packed, delta, recipe, mergekit, structured; got 'pakced' (did you mean 'packed'?)"),
        (("--format", "acme/numpi"), "format 'acme/numpi': acme 1.2 has no 'numpi' (did you mean 'numpy'?)"),
        (("--format", "acme-two/numpy"), "format 'acme-two/numpy' needs the package 'acme-two', which is not installed here"),
        (("--format", "acme/one"), "expected a name that ends in .npz for format acme/one"),
        (("--format", "acme/empty", "--verify"), "format acme/empty cannot be verified"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(there, tmp_path, flags, told):
    assert told in refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_guest_that_fails_is_named_and_leaves_nothing(there, tmp_path):
    export = ("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", "--format", "acme/broken")
    assert "format 'acme/broken': acme 1.2 failed: KeyError: 'graph'" in refused(*export, code=1)
    assert list(tmp_path.iterdir()) == []
