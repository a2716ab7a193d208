"""By the engine of a GPU, interpreted: models, experts, guests and outputs that are not the plain case."""

from __future__ import annotations

import dataclasses
import json

import acme_package
import pytest
import torch
from random_pools import random_gpt2
from safetensors.torch import save_file
from stand_ins import weights_of

if torch.cuda.is_available():
    pytest.skip("tests/gpu holds this where there is a card", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: no kernels for a GPU")


from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import plan
from sae_moo.materialization.calibration import calibrate
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.ops.device.engine import Banded
from sae_moo.materialization.ops.device.tables import Card
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
MATH, CODE, LAW = Expert("math"), Expert("code"), Expert("law")
LINEAR = Merge("linear", (MATH, CODE, LAW), (0.5, 0.2, 0.3))
SPHERE = Merge("slerp", (LINEAR, Prune(MATH, 0.4)), (0.6, 0.4))
TEXTS = ["2 plus 3 is 5", "the cat sat on the mat", "9 plus 9 is 18 and more"]
CARD = Card(torch.device("cpu"), tile=2048)


def engine(device, pool):
    return Banded(CARD, pool.remembered, lambda size: True)


def again(pool: ExpertPool) -> ExpertPool:
    """The same checkpoints, nothing known of them yet."""
    made = ExpertPool(pool.checkpoints)
    made.norms.update(pool.norms)
    return made


class Both:
    """A pool with a live model: recipes on it a tensor at a time, and on bands of so many elements."""

    def __init__(self, pool: ExpertPool, patch: pytest.MonkeyPatch, dtype=torch.bfloat16, elements: int = 3000) -> None:
        self.plainly, self.banded = again(pool), again(pool)
        self.model = pool.live_model(dtype)
        self._patch, self._elements = patch, elements

    def alike(self, recipe: Recipe, cache: tuple[WeightCache | None, WeightCache | None] = (None, None)) -> None:
        replayed = resolve(recipe, self.plainly, cache=cache[0])  # what resolving found beside it is known no more
        wanted = materialize(replayed, self.plainly, self.model, cache[0])
        weights = weights_of(self.plainly, self.model)
        with torch.no_grad():
            for weight in self.plainly.parameters(self.model).values():
                weight.fill_(7.0)
        with self._patch.context() as patch:
            patch.setattr(plan, "engine_on", engine)
            patch.setattr(plan.Plan, "_band_size", lambda plan, largest, kept=False: self._elements)
            found = materialize(recipe, self.banded, self.model, cache[1])
        assert dataclasses.replace(found, seconds=0.0) == dataclasses.replace(wanted, seconds=0.0)
        for name, weight in weights_of(self.banded, self.model).items():
            assert torch.equal(weight, weights[name]), name


@pytest.fixture
def both(tiny, monkeypatch):
    return Both(tiny, monkeypatch)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """Matrices stored inputs x outputs."""
    pool = random_gpt2(tmp_path_factory.mktemp("turned"))
    return pool, calibrate(pool, TEXTS, tokens=20)


@pytest.fixture(scope="module")
def calibrated(tiny):
    pool = ExpertPool(tiny.checkpoints)
    return pool, calibrate(pool, TEXTS, tokens=20)


@pytest.mark.parametrize(
    ("criterion", "scope"),
    [("magnitude", "2:4"), ("magnitude", "neurons"), *(("wanda", scope) for scope in ("row", "group", "heads"))],
)
def test_matrices_that_are_stored_turned(turned, criterion, scope, monkeypatch):
    pool, digest = turned
    calibration = digest if criterion == "wanda" else None
    merged = Merge("linear", (MATH, Expert("base")), (0.6, 0.4))
    Both(pool, monkeypatch).alike(Cast(Prune(merged, 0.5, criterion, scope, calibration=calibration), "bfloat16"))


@pytest.mark.parametrize("scope", ["tensor", "2:4", "global", "neurons"])
def test_weights_weighed_by_activations(calibrated, scope, monkeypatch):
    pool, digest = calibrated
    rescale = scope in ("tensor", "2:4", "global")
    Both(pool, monkeypatch).alike(
        Cast(Prune(LINEAR, 0.5, "wanda", scope, calibration=digest, rescale=rescale), "float32")
    )


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_experts_of_a_mixture_stored_apart_or_stacked(mixtures, kind, monkeypatch):
    merged = Merge("linear", (MATH, Expert("base")), (0.6, 0.4))
    Both(mixtures(kind), monkeypatch).alike(Cast(Prune(Prune(merged, 0.5, scope="moe-experts"), 0.6), "bfloat16"))


@pytest.mark.parametrize("scope", ["tensor", "row", "group", "neurons"])
def test_a_guests_criterion(tiny, scope, tmp_path, monkeypatch):
    acme_package.install(tmp_path, monkeypatch)
    rescale = scope in ("tensor", "row")
    Both(tiny, monkeypatch).alike(Cast(Prune(LINEAR, 0.5, "acme/relative", scope, rescale=rescale), "bfloat16"))


def test_a_guests_steps_beside_the_houses_own(both, tmp_path, monkeypatch):
    acme_package.install(tmp_path, monkeypatch)
    halves = tuple(Prune(each, 0.5) for each in (MATH, CODE, LAW))
    guests = Merge("acme/median", halves, (1, 1, 1))
    both.alike(guests)  # of zeros of its own there are many
    both.alike(Cast(Merge("linear", (Prune(guests, 0.8), CODE), (0.6, 0.4)), "bfloat16"))


def test_parents_that_are_held(both):
    caches = WeightCache(1 << 30), WeightCache(1 << 30)
    parent = Cast(Prune(LINEAR, 0.4), "bfloat16")
    both.alike(parent, caches)
    for cache in caches:
        assert parent in cache
    both.alike(Cast(Merge("zero_aware", (parent, CODE), (0.5, 0.7)), "bfloat16"), caches)


def test_a_later_candidate_of_another_count_or_expert_has_its_own_cuts(both):
    for recipe in (Prune(MATH, 0.5), Prune(MATH, 0.2), Prune(CODE, 0.2)):
        both.alike(recipe)


def test_scores_that_are_equal_across_tensors_go_in_order(both):
    coarse = Cast(MATH, "bfloat16")
    both.alike(Cast(Prune(coarse, 0.4, scope="global"), "float32"))
    both.alike(Prune(coarse, (0.0, 0.4, 0.0, 0.2), scope="group"))


def test_outputs_that_are_not_contiguous(both):
    with torch.no_grad():
        for weight in both.plainly.parameters(both.model).values():
            if weight.ndim == 2:
                weight.data = weight.data.t().contiguous().t()
                assert not weight.is_contiguous()
    both.alike(Cast(Prune(LINEAR, 0.5), "bfloat16"))
    both.alike(Cast(LINEAR, "float16"))  # rounded twice


def test_an_adapter_is_composed_and_merged(tiny, tiny_folders, tmp_path, monkeypatch):
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(2)
    low = {
        f"{prefix}.lora_A.weight": torch.randn(2, 16, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(16, 2, generator=generator),
    }
    save_file(low, tmp_path / "adapter_model.safetensors")
    pool = ExpertPool.open(str(tiny_folders["base"]), {"math": str(tiny_folders["math"]), "adapter": str(tmp_path)})
    both = Both(pool, monkeypatch)
    both.alike(Merge("task_arithmetic", (MATH, Prune(Expert("adapter"), 0.5)), (0.6, 0.7)))


def test_of_tensors_without_elements_nothing_is_written(tiny, monkeypatch):
    monkeypatch.setattr(plan, "engine_on", engine)
    empty = dataclasses.replace(tiny.tensors[1], name="nothing", shape=(0, 3))
    info, pool = tiny.tensors[0], again(tiny)
    work = plan.Plan(LINEAR, pool, "cpu", None)
    outs = [torch.empty(each.shape) for each in (empty, info, empty)]
    assert work.write(list(zip((empty, info, empty), outs, strict=True)))[::2] == [0, 0]
    assert torch.equal(outs[1], plan.Plan(LINEAR, pool, "cpu", None).tensor(info))
    found = {
        each.name: tensor
        for infos, tensors in work.tensors([info, empty])
        for each, tensor in zip(infos, tensors, strict=True)
    }
    assert {name: tensor.numel() for name, tensor in found.items()} == {info.name: info.numel, "nothing": 0}


THREE = Merge("linear", tuple(Prune(LINEAR, share) for share in (0.1, 0.2, 0.3)), (1, 1, 1))
SOUGHT = Merge("sce", (Cast(LINEAR, "float32"), MATH), (1, 1), {"select_topk": 0.5})


@pytest.mark.parametrize(
    ("recipe", "tensors"),
    [
        (Prune(LINEAR, 0.5), 1),
        (Cast(Prune(LINEAR, 0.5), "bfloat16"), 1),
        (Prune(LINEAR, 0.5, scope="row", rescale=True), 2),
        (Merge("linear", (Prune(LINEAR, 0.5), MATH), (1, 1)), 2),
        (Prune(Prune(Prune(LINEAR, 0.1), 0.2), 0.3), 2),
        (THREE, 4),
        (SOUGHT, 2),
    ],
)
def test_a_band_is_so_large_that_what_it_holds_at_once_has_room(recipe, tensors, tiny, monkeypatch):
    monkeypatch.setattr(plan, "engine_on", engine)
    monkeypatch.setattr(plan, "_workspace", lambda device: 4000)
    largest = max(info.numel for info in tiny.tensors)
    work = plan.Plan(recipe, tiny, "cpu", None)
    assert work._most == min(plan.AHEAD, (2 * largest + 1000) // tensors)
    bands = list(work._bands(tiny.tensors, work._most))
    assert [info for band, _ in bands for info in band] == list(tiny.tensors)
    assert all(sum(info.numel for info in band) <= max(work._most, band[0].numel) for band, _ in bands)
    # what follows is on its way meanwhile
    assert [following for _, following in bands] == [*(band for band, _ in bands[1:]), []]


@pytest.mark.parametrize("recipe", [THREE, Cast(THREE, "bfloat16"), Prune(THREE, 0.5, scope="global")])
def test_a_tensor_that_alone_holds_more_than_there_is_room_for_is_worked_on_beside(recipe, both, monkeypatch):
    monkeypatch.setattr(plan, "_workspace", lambda device: 0)
    beside = []
    write = plan.Plan.write

    def writing(self, places):
        if isinstance(self.engine, plan.OneByOne) and self._pool is both.banded:
            beside.extend(info.name for info, _ in places)
        return write(self, places)

    monkeypatch.setattr(plan.Plan, "write", writing)
    both.alike(recipe)
    largest = max(info.numel for info in both.banded.tensors)
    assert {info.name for info in both.banded.tensors if 4 * info.numel > 2 * largest} <= set(beside)
