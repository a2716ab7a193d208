from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sae_moo
from sae_moo.recipe.catalogue import resolved
from sae_moo.recipe.methods import METHODS, SEED, Setting

HOUSE = (
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "split_slerp",
    "model_stock",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "arcee_fusion",
    "nearswap",
    "ram",
    "ramplus_tl",
    "rankmean",
    "zero_aware",
)
PACKAGE = Path(sae_moo.__file__).parent
USERS = (
    "recipe/methods.py",  # their rows
    "deploy/mergekit/table.py",  # the format's own names
    "searchers/",  # who merges by them, and algorithms called after them
    "testing/",  # what the suites merge by
    "config/consistency.py",  # an algorithm of that name
    "experts/adapters.py",  # a kind of layer
    "materialization/ops/merge.py",  # `rankmean` reads its ranks
    "materialization/ops/task_vectors.py",  # `sce` remembers under its name
)


def test_the_house_has_these_in_this_order():
    assert tuple(METHODS) == HOUSE


@pytest.mark.parametrize("name", METHODS)
def test_every_place_that_a_row_names_is_there(name):
    row = METHODS[name]
    assert callable(row.function)
    if row.whole_model is not None:
        assert callable(resolved(row.whole_model.measure))
    assert row.summary
    assert row.source


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_says_what_it_does_and_takes_its_default(name):
    for setting in METHODS[name].settings.values():
        assert setting.about
        assert setting.fault(setting.default) is None


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_no_fault(name):
    row = METHODS[name]
    assert row.faults is None or not list(row.faults(row.defaults))


def test_rows_are_read_without_torch():
    code = "import sys, sae_moo.recipe.methods, sae_moo.recipe.criteria; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_divided_by_its_weights_is_added_to_the_base(name):
    """A row that forgets it would breed children of wrong mixing weights, and nothing would say so."""
    row = METHODS[name]
    assert row.adds_to_base == (row.defaults.get("normalize") is False)
    assert not row.adds_to_base or row.reads_base is True


def test_what_draws_has_a_seed():
    assert [name for name in METHODS if METHODS[name].random] == ["dare_linear", "dare_ties", "della", "della_linear"]
    assert all(METHODS[name].settings[SEED].whole for name in METHODS if METHODS[name].random)


def test_weighted_sums_and_what_needs_whole_models():
    assert [name for name in METHODS if METHODS[name].weighted_sum] == ["linear", "task_arithmetic"]
    assert [name for name in METHODS if METHODS[name].whole_model] == ["rankmean"]


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [
        ("linear", {}, False),
        ("ties", {}, True),
        ("nuslerp", {}, False),
        ("nuslerp", {"relative": True}, True),
        ("zero_aware", {}, False),
        ("zero_aware", {"scale": 1.2}, True),
        ("zero_aware", {"scale": ((1.0,), (2.0,))}, True),
    ],
)
def test_whether_the_base_is_read_may_depend_on_settings(name, settings, needed):
    row = METHODS[name]
    assert row.needs_base(row.filled(settings)) is needed


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15), (0.15, 0.15), (0.85, 0.15)])
def test_della_refuses_chances_outside_0_and_1(density, epsilon):
    for name in ("della", "della_linear"):
        (fault,) = METHODS[name].faults({"density": density, "epsilon": epsilon})
        assert fault == f"expected density - epsilon and density + epsilon in (0, 1), got {density}, {epsilon}"


@pytest.mark.parametrize(("density", "epsilon"), [(0.0, 0.15), (1.0, 0.15), (0.5, 0.15), (0.5, 0.0)])
def test_della_takes_all_none_and_chances_between(density, epsilon):
    assert not list(METHODS["della"].faults({"density": density, "epsilon": epsilon}))


@pytest.mark.parametrize(
    ("setting", "value", "fault"),
    [
        (Setting(default=True, about=""), 1, "expected bool, got 1"),
        (Setting(default=1.0, about=""), True, "expected float, got True"),
        (Setting(default=1.0, about=""), "x", "expected float, got 'x'"),
        (Setting(default="a", about="", choices=("a", "b")), "c", "expected one of a, b, got 'c'"),
        (Setting(default=0.5, about="", least=0, most=1), 1.5, "expected a share in [0, 1], got 1.5"),
        (Setting(default=5.0, about="", least=2), 1.5, "expected a number of at least 2, got 1.5"),
        (Setting(default=5.0, about="", most=7), 8.0, "expected a number of at most 7, got 8.0"),
        (Setting(default=5.0, about="", above=0), 0.0, "expected a number above 0, got 0.0"),
        (Setting(default=5, about=""), 1.5, "expected a whole number, got 1.5"),
        (Setting(default=5, about=""), 2**60, f"expected a smaller number, got {2**60}"),
        (Setting(default=5.0, about=""), 1e39, "expected a smaller number, got 1e+39"),
        (Setting(default=5.0, about=""), 3, None),
        (Setting(default=5, about=""), 3.0, None),
    ],
)
def test_a_setting_says_what_is_wrong_with_a_value(setting, value, fault):
    assert setting.fault(value) == fault


def test_nobody_else_writes_a_methods_name():
    """Who asks about methods asks the row; only who merges by one of them names it."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in (*METHODS, "ranks"):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert [path for path in sorted(found) if not path.startswith(USERS)] == []
