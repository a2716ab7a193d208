"""The house's formats hold what every format promises; a guest's is written, verified, estimated and named alike."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import acme_formats
import pytest
from guests import installed

from sae_moo.deploy.estimate import estimates
from sae_moo.deploy.formats import FORMATS, Format
from sae_moo.errors import RunError
from sae_moo.experts.pool import ExpertPool
from sae_moo.recipe import Cast, Prune
from sae_moo.testing.formats import AVERAGE, FormatContract

NEURONS = Cast(Prune(AVERAGE, 0.5, scope="neurons"), "float32")


OF_THEIR_OWN = {  # format -> a model that it can hold, where it cannot hold every model
    "mergekit": Cast(AVERAGE, "float32"),
    "structured": NEURONS,
}


@pytest.mark.parametrize("kind", FORMATS)
class TestEveryFormat(FormatContract):
    @pytest.fixture(autouse=True)
    def chosen(self, kind):
        self.kind = kind
        if kind in OF_THEIR_OWN:
            self.recipe, self.refused = OF_THEIR_OWN[kind], FormatContract.recipe


@pytest.fixture(scope="module", autouse=True)
def acme(tmp_path_factory):
    """A package with formats of its own."""
    folder = tmp_path_factory.mktemp("site")
    installed(folder, "acme", "1.2", Path(acme_formats.__file__).read_text(), acme_formats.POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("acme", None)


class TestAGuestsFolder(FormatContract):
    kind = "acme/numpy"


class TestAGuestsFile(FormatContract):
    kind = "acme/one"


class TestAGuestThatBreaksItsPromises:
    @pytest.fixture
    def order(self, tmp_path):
        suite = FormatContract()
        pool = ExpertPool.open("zoo:base", {"math": "zoo:math", "lingua": "zoo:lingua"})
        order = suite.ordered(FORMATS.find("acme/numpy"), pool, suite.recipe, tmp_path / "out")
        return replace(order, check=suite.check(order))

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("careless", "format acme/careless: what was written was not verified; nothing was exported"),
            ("broken", "format 'acme/broken': acme 1.2 failed: KeyError: 'graph'"),
            ("empty", "format acme/empty: nothing was written"),
        ],
    )
    def test_is_told_by_name_and_nothing_is_left(self, order, name, told):
        other = replace(order, format=FORMATS.find(f"acme/{name}"))
        with pytest.raises(RunError, match=re.escape(told)):
            other.write()
        assert list(order.output.parent.iterdir()) == []

    def test_is_told_of_an_estimate(self, order):
        row = replace(FORMATS.find("acme/empty"), estimate="acme:BrokenSizing")
        with pytest.raises(RunError, match=r"estimate of format 'acme/empty': acme 1\.2 failed: KeyError: 'graph'"):
            estimates(order.stream, [row])


def test_a_next_step_names_what_is_known():
    with pytest.raises(ValueError, match=r"next_step of x: expected words among output, .* got folder"):
        Format(name="x", summary="x", write="x:x", loads="x", next_step=(("see {folder}", "x"),))


def test_help_texts_need_no_torch_and_read_no_entry_points():
    code = (
        "import sys; from sae_moo.cli.main import app; import sae_moo.recipe.catalogue as c; c.entry_points = None\n"
        "try: app(['export', '--help'])\n"
        "except SystemExit: print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("set()\n")
    for name, row in FORMATS.items():
        assert f"{name}: {row.summary}" in " ".join(shown.split())
