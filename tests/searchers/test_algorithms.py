"""The catalogue of search algorithms: its rows, and those that installed packages offer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from guests import ants

from sae_moo.config.document import Config, differences
from sae_moo.errors import InputError
from sae_moo.recipe.catalogue import resolved
from sae_moo.recipe.section import section_of
from sae_moo.searchers.algorithms import ALGORITHMS, Needs
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.sae import Sae
from sae_moo.testing.searchers import SearcherContract, assignment

ROWS = """\
study: {name: guest}
models: {base: zoo:base, experts: {math: zoo:math}}
tasks: [{name: zoo_math, search: 10, test: 10}]
objectives: [zoo_math, sparsity]
search:
  algorithm: ALGORITHM
  ants: SETTINGS
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package acme-ants, installed."""
    folder = tmp_path_factory.mktemp("site")
    ants(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        yield folder


def read(tmp_path, algorithm="acme-ants/ants", settings="{}"):
    path = tmp_path / "c.yaml"
    path.write_text(ROWS.replace("ALGORITHM", algorithm).replace("SETTINGS", settings))
    return Config.load(path)


def faults(*arguments) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(*arguments)
    return [line.strip().removeprefix(f"{arguments[0]}/") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.usefixtures("package")
class TestAnts(SearcherContract):
    algorithm = "acme-ants/ants"


def test_the_rows_of_the_house_are_found_without_torch_pymoo_or_entry_points():
    code = (
        "import sys, sae_moo.recipe.catalogue as c; c.entry_points = lambda **k: sys.exit('read')\n"
        "from sae_moo.searchers.algorithms import ALGORITHMS; assert len(list(ALGORITHMS.values())) > 20\n"
        "print(sorted({'torch', 'transformers', 'pymoo', 'optuna'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_of_the_house_has_what_makes_its_searcher(name):
    row = ALGORITHMS[name]
    assert callable(resolved(row.make))
    assert set(row.breeding) <= set(row.settings)
    assert row.guest is None


def test_a_row_says_what_its_searcher_needs_of_evaluations():
    def needs(algorithm, settings=None, **changes):
        return ALGORITHMS[algorithm].needs(assignment(algorithm, settings, **changes))

    assert needs("nsga2") == Needs()
    assert needs("nsga2", {"operators": {"remerge": 0.9}}) == Needs(parents=True)
    assert needs("nsga2", {"operators": {"remerge": 0.9}}, space="coefficients") == Needs()
    assert needs("sae-local") == Needs(parents=True)
    assert needs("sae-global", {"sae": {"measure": "l1"}}) == Needs(parents=True, sparseness="l1")
    assert needs("m2n2") == Needs(parents=True)
    assert needs("pso") == needs("ties") == Needs()


def test_settings_are_found_by_their_class():
    settings = {"operators": Operators(tilt=0.2)}
    assert section_of(settings, Operators).tilt == 0.2
    assert section_of(settings, Sae) == Sae()


def test_a_guest_is_configured_like_one_of_the_house(tmp_path, package):
    config = read(tmp_path, "acme-ants/ants", "{evaporation: 0.3}")
    assert config.search.settings["ants"].evaporation == 0.3
    assert (config.space_kind, config.algorithm.name) == ("coefficients", "acme-ants/ants")
    assert Config.from_dict(config.model_dump(mode="json"), tmp_path) == config


def test_faults_of_a_guests_settings_have_their_line_and_the_nearest_name(tmp_path, package):
    assert faults(tmp_path, "acme-ants/ants", "{evaporaton: 0.3, visits: many}") == [
        "c.yaml:7: search.ants.visits: expected integer, got 'many'",
        "c.yaml:7: search.ants.evaporaton: no such key (did you mean 'evaporation'?); expected one of evaporation, visits",
    ]
    assert faults(tmp_path, "acme-ants/ants", "{visits: 12}") == [
        "c.yaml:7: search.ants.visits: an ant is tired after 9 visits"
    ]
    (fault,) = faults(tmp_path, "nsga2", "{visits: 2}")
    assert fault.startswith("c.yaml:7: search.ants: no such key; expected one of algorithm, population")


def test_a_guest_that_is_not_there_is_named_once_with_its_line(tmp_path, package):
    assert faults(tmp_path, "ghost/ants", "{evaporaton: 0.3}") == [
        "c.yaml:6: search.algorithm: search algorithm 'ghost/ants' needs the package 'ghost', which is not installed here"
    ]
    (fault,) = faults(tmp_path, "acme-ants/ant")
    assert "acme-ants 1.2 has no 'ant' (did you mean 'ants'?)" in fault


def test_a_guest_takes_no_key_that_every_search_has(tmp_path, package):
    (fault,) = faults(tmp_path, "acme-ants/greedy")
    assert "search algorithm 'acme-ants/greedy' calls settings 'population', as every search has them" in fault


def test_the_version_of_a_guest_is_part_of_what_a_study_may_not_change(tmp_path, package):
    assert read(tmp_path).identity()["search.algorithm's package"] == "acme-ants 1.2"
    house = Config.from_dict({**read(tmp_path).model_dump(mode="json"), "search": {"algorithm": "pso"}}, tmp_path)
    assert not any("package" in key for key in house.identity())
    newer = {**read(tmp_path).identity(), "search.algorithm's package": "acme-ants 2.0"}
    (difference,) = differences(read(tmp_path).identity(), newer)
    assert "the study has 'acme-ants 1.2', now it is 'acme-ants 2.0'" in str(difference)
