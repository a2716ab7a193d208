"""Whole recipes by the engine of a GPU, its kernels interpreted on the CPU: the bits of the plan without it."""

from __future__ import annotations

import pytest
import torch
from stand_ins import weights_of

if torch.cuda.is_available():
    pytest.skip("tests/gpu holds this where there is a card", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: no kernels for a GPU")

from sae_moo.errors import WeightsError
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import plan
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.ops.device.engine import Banded
from sae_moo.materialization.ops.device.tables import Card
from sae_moo.materialization.parents import WeightCache
from sae_moo.recipe import Cast, Expert, Merge, Prune

# numpy, which interprets the kernels, warns of what a GPU says nothing about: what overflows, infinities less themselves
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
MATH, CODE, LAW = Expert("math"), Expert("code"), Expert("law")
LINEAR = Merge("linear", (MATH, CODE, LAW), (0.5, 0.2, 0.3))
SPHERE = Merge("slerp", (LINEAR, Prune(MATH, 0.4)), (0.6, 0.4))
RECIPES = {
    "an expert": MATH,
    "a cast": Cast(MATH, "bfloat16"),
    "linear": LINEAR,
    "weights by group": Merge("linear", (MATH, CODE), ((1, 0), (0.5, 0.5), (0.2, 0.8), (0, 1))),
    "linear, then magnitude": Cast(Prune(LINEAR, 0.5), "bfloat16"),
    "norms kept": Cast(Prune(LINEAR, (0.0, 0.3, 0.6, 0.0), rescale=True), "bfloat16"),
    "magnitude of an expert": Cast(Prune(MATH, 0.5), "float32"),
    "by row": Prune(LINEAR, 0.5, scope="row"),
    "by row, norms kept": Cast(Prune(LINEAR, 0.5, scope="row", rescale=True), "bfloat16"),
    "2:4": Prune(LINEAR, 0.5, scope="2:4"),
    "by group": Cast(Prune(LINEAR, (0.1, 0.3, 0.6, 0.0), scope="group"), "float32"),
    "global": Cast(Prune(LINEAR, 0.4, scope="global", rescale=True), "bfloat16"),
    "neurons": Prune(LINEAR, 0.5, scope="neurons"),
    "heads": Cast(Prune(LINEAR, 0.5, scope="heads"), "bfloat16"),
    "a lineage that asks": Merge("slerp", (Cast(SPHERE, "bfloat16"), Prune(SPHERE, 0.3)), (0.5, 0.5)),
    "ties of pruned": Merge("ties", (Prune(MATH, 0.3), CODE, LINEAR), (1, 1, 0.5), {"density": 0.5}),
    "the same input twice": Merge("linear", (LINEAR, LINEAR), (0.5, 0.5)),
    "used twice": Merge("task_arithmetic", (LINEAR, Prune(LINEAR, 0.5)), (0.5, 0.7)),
    "a split": Merge("split_slerp", (MATH, CODE), (0.4, 0.6), {"split": 0.37}),
    "ranks": Merge("rankmean", (MATH, CODE), (0.4, 0.6)),
}


CARD = Card(torch.device("cpu"), tile=512)
WAITS = {"by group": 3, "global": 3, "a lineage that asks": 3, "a split": 2}
"""How often the host waits for the device where that is more than once: for answers, for whole models."""


def engine(device, pool):
    return Banded(CARD, pool.remembered, lambda size: True)


@pytest.fixture
def pool(tiny_folders):
    experts = {name: str(path) for name, path in tiny_folders.items() if name != "base"}
    return ExpertPool.open(str(tiny_folders["base"]), experts)


@pytest.fixture(scope="module")
def live(tiny):
    return tiny.live_model(torch.bfloat16), tiny.live_model()


@pytest.mark.parametrize("elements", [None, 3000])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_on_bands_gives_the_bits_of_a_tensor_at_a_time(name, elements, tiny, pool, live, monkeypatch):
    recipe, model = RECIPES[name], live[elements is None]
    wanted = materialize(recipe, tiny, model)
    weights = {tensor: weight.clone() for tensor, weight in weights_of(tiny, model).items()}
    for weight in tiny.parameters(model).values():
        weight.data.fill_(7.0)
    monkeypatch.setattr(plan, "engine_on", engine)
    if elements is not None:
        monkeypatch.setattr(plan.Plan, "_band_size", lambda self, largest, kept=False: elements)
    waits = CARD.waits
    found = materialize(recipe, pool, model)
    assert CARD.waits - waits == WAITS.get(name, 1)
    for tensor, weight in weights_of(tiny, model).items():
        assert torch.equal(weight, weights[tensor]), tensor
    assert found.recipe == wanted.recipe
    assert found.tensor_sparsity == wanted.tensor_sparsity
    assert found.sparsity == wanted.sparsity


def test_an_experts_cuts_and_products_are_fetched_once(pool, live, monkeypatch):
    monkeypatch.setattr(plan, "engine_on", engine)
    recipe = Merge("slerp", (Prune(MATH, 0.5), CODE), (0.5, 0.5))
    materialize(recipe, pool, live[1])
    waits = CARD.waits
    launches = CARD.launches
    materialize(Merge("ties", (MATH, CODE), (0.3, 0.6), {"density": 0.5}), pool, live[1])
    first = CARD.launches - launches
    materialize(Merge("ties", (MATH, CODE), (0.4, 0.6), {"density": 0.5}), pool, live[1])
    assert CARD.launches - launches - first == 1  # nothing but the vote: the cuts are known
    assert CARD.waits - waits == 2


def test_results_that_lie_on_the_device_until_they_are_used_count_into_the_room(pool, monkeypatch):
    monkeypatch.setattr(plan, "engine_on", engine)
    monkeypatch.setattr(plan, "_workspace", lambda device: 0)
    monkeypatch.setattr(plan, "AHEAD", 3000)
    monkeypatch.setattr(plan, "PARTS", 1)
    monkeypatch.setattr(plan.Feed, "complete", True)
    everything = sum(info.numel for info in pool.tensors)
    for recipe, written, kept in ((MATH, everything, everything), (LINEAR, everything, 1000), (SPHERE, 1000, 500)):
        made = plan.Plan(recipe, pool, "cpu", None)
        assert (made._band_size(1000), made._band_size(1000, kept=True)) == (written, kept)
    monkeypatch.setattr(plan.Plan, "_band_size", lambda self, largest, kept=False: 2000 if kept else everything)
    bands = [band for band, _ in plan.Plan(LINEAR, pool, "cpu", None).tensors(pool.tensors)]
    assert all(len(band) == 1 or sum(info.numel for info in band) <= 2000 for band in bands)


def test_parents_that_are_sent_to_the_device_are_sent_some_tensors_at_a_time(pool, live, monkeypatch):
    monkeypatch.setattr(plan, "engine_on", engine)
    monkeypatch.setattr(plan, "AHEAD", 3000)
    monkeypatch.setattr(plan, "PARTS", 1)
    monkeypatch.setattr(plan.Feed, "complete", True)
    parents, cache = [Cast(Prune(expert, 0.5), "float32") for expert in (MATH, CODE)], WeightCache(1 << 30)
    for parent in parents:
        materialize(parent, pool, live[1], cache)
    everything, sizes = sum(info.numel for info in pool.tensors), []
    for elsewhere in (False, True):
        child = plan.Plan(Merge("linear", tuple(parents), (0.5, 0.5)), pool, "cpu", cache)
        child.__dict__.pop("_parents_elsewhere", None)
        child._device = torch.device("meta" if elsewhere else "cpu")
        sizes.append(child._band_size(1))
    assert sizes == [everything, 3000]


def test_cuts_among_nan_are_an_error_and_what_is_written_is_not_kept(pool, live, monkeypatch):
    huge = Cast(Merge("linear", (MATH,), (1e9,), {"normalize": False}), "float16")
    nothing = Merge("linear", (huge, huge), (1.0, -1.0), {"normalize": False})  # infinity less infinity
    cache = WeightCache(1 << 30)
    monkeypatch.setattr(plan, "engine_on", engine)
    with pytest.raises(WeightsError, match="weights are NaN: no order among"):
        materialize(Cast(Prune(nothing, 0.5), "float32"), pool, live[1], cache)
    assert Cast(Prune(nothing, 0.5), "float32") not in cache
