"""How alike task vectors are, against a reference over whole models; read once, in parts, whatever the experts are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from adapted_models import SETTINGS, factors, model_of
from safetensors.torch import save_file

from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import likeness
from sae_moo.materialization.likeness import STRUCTURAL, likenesses, turned


@pytest.fixture(scope="module", params=["tied", "bf16", "adapters"])
def pool(request, tmp_path_factory) -> ExpertPool:
    """A base and two experts: float32 and tied, one of them in bfloat16, or two adapters that touch other matrices."""
    folder = tmp_path_factory.mktemp(request.param)
    model = model_of("tied" if request.param == "tied" else "untied")
    model.save_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two")):
        if request.param == "adapters":
            (folder / name).mkdir()
            wanted = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"][: 2 - seed]
            tensors = {key: each for place in wanted for key, each in factors(place, seed=seed).items()}
            save_file(
                {f"base_model.model.{key}": each for key, each in tensors.items()},
                folder / name / "adapter_model.safetensors",
            )
            settings = SETTINGS | {"target_modules": ["q_proj", "o_proj"]}
            (folder / name / "adapter_config.json").write_text(json.dumps(settings))
            continue
        torch.manual_seed(7 + seed)
        expert = model_of("tied" if request.param == "tied" else "untied")
        with torch.no_grad():
            for own, mine in zip(expert.parameters(), model.parameters(), strict=True):
                own.copy_(mine + torch.randn_like(own) * 0.01 * (1 + seed) * (torch.rand_like(own) > 0.2))
        if request.param == "bf16" and seed:
            expert = expert.bfloat16()
        expert.save_pretrained(folder / name)
    return ExpertPool.open(str(folder / "base"), {name: str(folder / name) for name in ("one", "two")})


def task_vectors(pool, name: str) -> dict[str, np.ndarray]:
    return {
        info.name: (pool.load(name, info.name).float() - pool.load("base", info.name).float()).numpy()
        for info in pool.tensors
    }


def largest(delta: np.ndarray, percent: int) -> set[int]:
    """Places of the largest entries, the later one of two equal ones, none that are 0."""
    flat = np.abs(delta).flatten()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], -i))
    return {i for i in order[: math.ceil(len(flat) * percent / 100)] if flat[i] > 0}


def effective_rank(delta: np.ndarray) -> float:
    values = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) / len(values)


def reference(pool, names) -> dict[str, float]:
    """The features over all tensors, as they are defined."""
    one, two = (task_vectors(pool, name) for name in names)
    flat = [np.concatenate([each.flatten() for each in model.values()]).astype(np.float64) for model in (one, two)]
    base = np.concatenate([pool.load("base", info.name).float().numpy().flatten() for info in pool.tensors])
    norms = [np.linalg.norm(each) for each in flat]
    moved = (flat[0] != 0) & (flat[1] != 0)
    agreeing = np.sign(flat[0]) == np.sign(flat[1])
    found = {
        "task_vector_cosine_all": flat[0] @ flat[1] / (norms[0] * norms[1]),
        "norm_ratio_all": math.log(norms[1] / norms[0]),
        "sign_agreement_all": (moved & agreeing).sum() / moved.sum() if moved.any() else math.nan,
    }
    for percent in (1, 10):
        tops = [[largest(model[info.name], percent) for info in pool.tensors] for model in (one, two)]
        sizes = [sum(map(len, top)) for top in tops]
        found[f"top_{percent}_overlap_all"] = sum(len(a & b) for a, b in zip(*tops, strict=True)) / math.sqrt(
            math.prod(sizes)
        )
    for side, model, norm in zip(("first", "second"), (one, two), norms, strict=True):
        ranks = [effective_rank(model[info.name]) for info in pool.tensors if info.prunable and model[info.name].any()]
        found[f"relative_norm_{side}"] = norm / np.linalg.norm(base.astype(np.float64))
        found[f"effective_rank_{side}"] = np.mean(ranks)
    return found


def same(found, wanted, digits=1e-5):
    assert set(wanted) <= set(found)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=digits, abs=1e-9, nan_ok=True), name


def test_features_are_those_of_whole_task_vectors(pool):
    pair = ("one", "two")
    found = likenesses(pool, [pair])[pair]
    assert tuple(found) == STRUCTURAL
    same(found, reference(pool, pair))
    for name in ("relative_norm", "effective_rank"):
        assert found[f"{name}_difference"] == pytest.approx(
            found[f"{name}_second"] - found[f"{name}_first"], rel=1e-5, abs=1e-5
        )


def test_features_by_depth_are_those_of_the_blocks_of_a_third(pool):
    found = likenesses(pool, [("one", "two")])["one", "two"]
    one, two = (task_vectors(pool, name) for name in ("one", "two"))
    for region, blocks in (("early", "0"), ("middle", "01"), ("late", "1")):
        inside = [name for name in one if any(f"layers.{block}." in name for block in blocks)]
        a, b = (np.concatenate([each[name].flatten() for name in inside]).astype(np.float64) for each in (one, two))
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        same(found, {f"task_vector_cosine_{region}": a @ b / lengths if lengths else math.nan})


def test_what_is_found_does_not_depend_on_the_parts_that_are_looked_at(pool, monkeypatch):
    pairs = [("one", "two"), ("two", "one")]
    whole = likenesses(pool, pairs)
    monkeypatch.setattr(likeness, "CHUNK", 37)
    monkeypatch.setattr(likeness, "BAND", 24)
    monkeypatch.setattr(likeness, "HELD_BYTES", 1)
    for pair, features in likenesses(pool, pairs).items():
        same(features, whole[pair])


def test_the_other_order_is_the_same_pair_turned(pool):
    found = likenesses(pool, [("one", "two"), ("two", "one")])
    same(turned(found["one", "two"]), found["two", "one"])
    same(turned(turned(found["one", "two"])), found["one", "two"], digits=0)
    assert found["one", "two"]["norm_ratio_all"] == -found["two", "one"]["norm_ratio_all"] != 0


def test_an_expert_is_like_itself_and_has_no_direction_where_it_is_the_base(tiny_folders):
    folders = {"math": "math", "twin": "math", "still": "base", "code": "code"}
    pool = ExpertPool.open(str(tiny_folders["base"]), {name: str(tiny_folders[to]) for name, to in folders.items()})
    found = likenesses(pool, [("math", "twin"), ("math", "still"), ("math", "code")])
    twins = found["math", "twin"]
    for name, value in twins.items():
        if not name.endswith(("_first", "_second")):
            assert value == (0.0 if name.startswith("norm_ratio") or name.endswith("difference") else 1.0), name
    still = found["math", "still"]
    assert still["relative_norm_second"] == 0.0
    assert {name for name, value in still.items() if math.isfinite(value)} == {
        "relative_norm_first",
        "relative_norm_second",
        "relative_norm_difference",
        "effective_rank_first",
    }
    for name, value in found["math", "code"].items():  # drawn apart
        assert not name.startswith("task_vector_cosine") or abs(value) < 0.1
        assert not name.startswith("sign_agreement") or abs(value - 0.5) < 0.05


def test_tensors_are_gone_over_once_for_all_pairs(tiny, monkeypatch):
    reads = []
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda self, name: reads.append((self.folder, name)) or load(self, name))
    found = likenesses(tiny, [("math", "code"), ("code", "law"), ("math", "law")])
    assert len(reads) == len(set(reads)) == 4 * len(tiny.tensors)
    monkeypatch.undo()
    for pair, features in found.items():
        same(features, likenesses(tiny, [pair])[pair], digits=0)


def test_tensors_that_are_computed_are_held_two_at_a_time_where_all_are_too_large(tiny, monkeypatch):
    """And each two of them once, so that nothing is counted twice."""
    pairs = [("math", "code"), ("code", "law"), ("law", "math")]
    whole = likenesses(tiny, pairs)
    monkeypatch.setattr(likeness, "HELD_BYTES", 1)
    monkeypatch.setattr(ExpertPool, "stored", lambda self, name, tensor: False)
    names = ["math", "code", "law", "math"]
    assert list(likeness._held_together(tiny, tiny.tensors[1], names, [0, 1, 3])) == [[0, 1], [0, 3], [1, 3]]
    assert list(likeness._held_together(tiny, tiny.tensors[1], names, [2])) == [[2]]
    apart = likenesses(tiny, pairs)
    for pair in pairs:
        same(apart[pair], whole[pair])


def test_what_an_adapter_does_not_touch_is_not_looked_at(pool, monkeypatch):
    reads = []
    load = ExpertPool.load
    monkeypatch.setattr(ExpertPool, "load", lambda self, *what: reads.append(what) or load(self, *what))
    likenesses(pool, [("one", "two")])
    touched = sorted(what for what in reads if what[0] != "base")
    assert touched == sorted(
        (name, info.name) for name in ("one", "two") for info in pool.tensors if not pool.shares_base(name, info.name)
    )


def matrix_pool(folder, deltas):
    """A pool whose experts add a matrix to the first projection of a block."""
    model = model_of("untied")
    model.save_pretrained(folder / "base")
    experts = {}
    for name, delta in deltas.items():
        changed = {key: each.clone() for key, each in model.state_dict().items()}
        changed["model.layers.0.mlp.up_proj.weight"] += delta
        expert = model_of("untied")
        expert.load_state_dict(changed)
        expert.save_pretrained(folder / name)
        experts[name] = str(folder / name)
    return ExpertPool.open(str(folder / "base"), experts)


def test_a_sketch_of_a_large_matrix_keeps_low_ranks_and_tells_them_from_flat_spectra(tmp_path, monkeypatch):
    torch.manual_seed(0)
    column, row = torch.randn(24, 1), torch.randn(1, 16)
    noise = torch.randn(24, 16)
    pool = matrix_pool(tmp_path, {"line": column @ row, "flat": noise})
    exact = likenesses(pool, [("line", "flat")])["line", "flat"]
    assert exact["effective_rank_first"] == pytest.approx(1 / 16, rel=0.01)
    monkeypatch.setattr(likeness, "SKETCH", 8)
    likeness._directions.cache_clear()
    sketched = likenesses(pool, [("line", "flat")])["line", "flat"]
    assert sketched == likenesses(pool, [("line", "flat")])["line", "flat"], "the same directions always"
    likeness._directions.cache_clear()
    assert sketched["effective_rank_first"] == pytest.approx(1 / 8, rel=0.01)
    assert 0.6 < sketched["effective_rank_second"] < 1
    unchanged = [name for name in STRUCTURAL if not name.startswith("effective_rank")]
    assert [sketched[name] for name in unchanged] == pytest.approx([exact[name] for name in unchanged], nan_ok=True)
