"""A kind's name stands in its row alone: who asks about kinds asks the catalogue."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sae_moo
from sae_moo.deploy.formats import FORMATS
from sae_moo.evaluate.kinds import KINDS
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.recipe.methods import METHODS
from sae_moo.searchers.algorithms import ALGORITHMS

PACKAGE = Path(sae_moo.__file__).parent

KINDS_OF_ROWS = [
    (
        METHODS,
        "recipe/methods.py",
        (
            "deploy/mergekit/table.py",  # the names of another format
            "searchers/",  # who merges by them, and algorithms called after them
            "testing/",  # what the suites merge by
            "materialization/ops/merge.py",  # `rankmean` reads its ranks
        ),
    ),
    (CRITERIA, "recipe/criteria.py", ("experts/updates.py",)),  # DoRA's own word
    (
        ALGORITHMS,
        "searchers/algorithms.py",
        (
            "cli/predicting.py",  # pairs of experts
            "deploy/mergekit/table.py",  # merge methods that are called alike
            "recipe/methods.py",  # likewise
            "searchers/baselines.py",  # likewise
            "testing/randomness.py",  # a module of Python's
        ),
    ),
    (
        KINDS,
        "evaluate/kinds.py",
        (
            "evaluate/lm_eval.py",  # a kind of output of the harness
            "zoo/items.py",  # the zoo stands below all and says what its items are
        ),
    ),
    (
        FORMATS,
        "deploy/formats.py",
        (
            "__init__.py",  # a room
            "objectives/evaluation.py",  # a field of an evaluation
            "study/trials.py",  # an attribute of a trial
            "recipe/methods.py",  # a program, as a source
            "deploy/writers.py",  # likewise
            "jobs/merge.py",  # likewise
        ),
    ),
]
"""Each catalogue, the file of its rows, and who else may write names of rows, and why."""


def written() -> dict[str, set[str]]:
    """Return the texts that each file of the package holds."""
    return {
        path.relative_to(PACKAGE).as_posix(): {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        for path in PACKAGE.rglob("*.py")
    }


@pytest.mark.parametrize(("catalogue", "home", "others"), KINDS_OF_ROWS, ids=[each[0].kind for each in KINDS_OF_ROWS])
def test_nobody_else_writes_a_kinds_name(catalogue, home, others):
    names = {*catalogue}
    if catalogue is METHODS:
        names |= {row.whole_model.setting for row in METHODS.values() if row.whole_model}
    users = {path for path, texts in written().items() if texts & names}
    assert home in users
    assert [path for path in sorted(users) if not path.startswith((home, *others))] == []
    assert [each for each in others if not any(path.startswith(each) for path in users)] == [], "need no leave"
