"""The tables of all pairs of the catalogues hold every operator and pair, once, and chains as they are drawn."""

from __future__ import annotations

import csv
import runpy
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from sae_moo.recipe.operators import USUAL
from sae_moo.searchers.pairs import pairs
from sae_moo.zoo import TASKS

CATALOGUE = Path(__file__).parents[2] / "studies/catalogue"
INSTANCES = {"search": 120, "test": 400}


def models_of(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the experts of a table, and its models; every one has a whole number of right answers in every place."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    counted = Counter((row["operators"], row["experts"], row["task"], row["split"]) for row in rows)
    models = list(dict.fromkeys((row["operators"], row["experts"]) for row in rows))
    assert counted == Counter((*model, *place) for model, place in product(models, product(TASKS, INSTANCES)))
    for row in rows:
        assert int(row["instances"]) == INSTANCES[row["split"]]
        right = float(row["score"]) * INSTANCES[row["split"]]
        assert 0 <= right <= INSTANCES[row["split"]]
        assert right == pytest.approx(round(right), abs=1e-3)
    return [experts for operators, experts in models if not operators and experts != "base"], models


@pytest.mark.parametrize("name", ["pairs.csv", "pairs-gpt_neox.csv"])
def test_a_table_has_every_operator_and_pair_once_beside_the_experts_and_drawn_chains(name: str) -> None:
    experts, models = models_of(CATALOGUE / name)
    assert len(experts) == 10
    merges = [(operator.name, " > ".join(pair)) for operator, pair in pairs(experts, USUAL)]
    drawn = runpy.run_path(str(CATALOGUE / "table.py"))["chains"](USUAL, experts, 24, 5)
    chains = [(" > ".join(each.name for each in operators), " > ".join(three)) for operators, three in drawn]
    assert len(set(chains)) == 120
    assert Counter(models) == Counter([("", "base"), *(("", expert) for expert in experts), *merges, *chains])
