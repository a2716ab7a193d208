"""What only a card can show: the CPU's bits, how often the host waits, what memory is kept.

Run by `pytest -m gpu`, or with all else that a card can show by `studies/gpu/check.py`.
"""

from __future__ import annotations

import gc

import pytest
import torch
from card_bits import STORES, Pair
from card_counts import counted
from card_models import made_pool, norms
from card_recipes import MOST_WAITS, everything, lines

import sae_moo as sm
from sae_moo.materialization.forms import form

pytestmark = pytest.mark.gpu
CARD = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return made_pool(tmp_path_factory.mktemp("pool") / "odd", "odd", CARD)


@pytest.fixture(scope="module")
def model(pool):
    return pool.live_model(torch.bfloat16, CARD)


@pytest.fixture
def fused():
    if form(CARD).kind != "triton":
        pytest.skip(form(CARD).words)


@pytest.mark.parametrize("store", STORES)
def test_every_recipe_has_the_bits_of_the_cpu(tmp_path, store):
    dtypes, rounded = STORES[store]
    pool = made_pool(tmp_path / store, "odd", CARD, dtypes, edges=True)
    todo = everything(len(pool.groups), norms(pool))
    pair = Pair(pool, rounded, CARD)
    faults = {name: pair.faults(recipe) for name, recipe in todo.items()}
    assert {name: fault for name, fault in faults.items() if fault} == {}


@pytest.mark.usefixtures("fused")
def test_the_host_waits_three_times_a_candidate_at_most(pool, model):
    waits = {}
    for name, line in lines(norms(pool)).items():
        sm.materialize(line.recipe, pool, model)
        found = counted(lambda line=line: sm.materialize(line.recipe, pool, model), CARD)
        assert found.launches > 0, f"{name}: the profiler sees no kernels"
        waits[name] = max(found.waits, found.warned)
    assert {name: count for name, count in waits.items() if count > MOST_WAITS} == {}


def test_candidate_after_candidate_takes_no_more_memory(pool, model):
    todo = [line.recipe for line in lines(norms(pool)).values()]

    def held() -> int:
        for recipe in todo:
            sm.materialize(recipe, pool, model)
        torch.cuda.synchronize(CARD)
        gc.collect()
        return torch.cuda.memory_allocated(CARD)

    held()
    before = held()
    assert [held() for _ in range(3)] == [before] * 3


def test_a_cache_of_parents_changes_no_bit(pool):
    cache = sm.WeightCache(2**30)
    todo = everything(len(pool.groups), norms(pool))
    pair = Pair(pool, "bfloat16", CARD)
    for name in ("a lineage of twelve", "a candidate of two generations"):
        recipe = sm.Cast(todo[name], "bfloat16")
        sm.materialize(recipe, pair.pools[0], pair.models[0])
        here, there = pool.parameters(pair.models[0]), pool.parameters(pair.models[1])
        for _ in range(2):
            sm.materialize(recipe, pair.pools[1], pair.models[1], cache)
            assert all(torch.equal(here[tensor], there[tensor].cpu()) for tensor in here), name
    assert len(cache) > 0
