"""A mixture without the experts that are removed computes what the live model does, and no other file pretends to."""

from __future__ import annotations

import json

import pytest
import torch
from mixture_kinds import KINDS

from sae_moo.deploy.estimate import estimates
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.mixtures import check_whole
from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config
from sae_moo.deploy.tensor_files import write_shards
from sae_moo.errors import InputError
from sae_moo.experts.live import load_model
from sae_moo.jobs.merge import merge
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import BASE, Cast, Expert, Merge, Prune, dumps, encode

MATH = Expert("math")
MEAN = Merge("linear", (Expert(BASE), MATH), (0.5, 0.5))
SCOPE = "moe-experts"


def logits(model):
    return model(torch.arange(48).reshape(2, 24) % 61 + 3).logits


def live(recipe, pool):
    model = pool.live_model()
    materialize(recipe, pool, model)
    return logits(model)


def written(small: Shrunk, folder):
    write_shards(folder, small.entries, small.content, 10**9)
    config = deployed_config(small.stream.pool, torch.float32, small.config)
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(folder, torch.float32, "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_mixture_computes_what_the_masked_one_does(mixtures, kind, tmp_path):
    pool = mixtures(kind)
    recipe = Cast(Prune(MEAN, 0.5, scope=SCOPE), "float32")
    small = Shrunk(Stream(recipe, pool, torch.float32))
    assert small.dropped == "3 of 6 experts of every mixture"
    assert set(small.config.values()) == {3}
    model = written(small, tmp_path)
    masked = pool.live_model()
    report = materialize(recipe, pool, masked)
    assert small.stream.sparsity() == report.sparsity, "all tensors have passed, those that are left out too"
    expected = logits(masked)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=2e-5)
    unmasked = pool.live_model()
    places = pool.parameters(unmasked)
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(small.stream.tensor(name))
    assert float((logits(unmasked) - expected).abs().max()) > 0.1, "zeros alone are another model"


def test_a_trial_with_scattered_zeros_too(mixtures, tmp_path):
    pool = mixtures("qwen3_moe")
    recipe = Cast(Prune(Prune(MEAN, 1 / 3, scope=SCOPE), 0.5), "float32")
    small = Shrunk(Stream(recipe, pool, torch.float32))
    assert small.dropped == "2 of 6 experts of every mixture"
    torch.testing.assert_close(logits(written(small, tmp_path)), live(recipe, pool), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("kind", "gone"), [("mixtral", 1), ("gpt_oss", 0), ("qwen2_moe", 0), ("granitemoe", 2)])
def test_blocks_and_experts_go_together(mixtures, kind, gone, tmp_path):
    pool = mixtures(kind)
    shorter = Prune(MEAN, 1 / 3, scope="blocks", units=tuple((0,) if block == gone else () for block in range(3)))
    recipe = Cast(Prune(shorter, 0.5, scope=SCOPE), "float32")
    small = Shrunk(Stream(recipe, pool, torch.float32))
    assert small.dropped == "1 of 3 blocks, 3 of 6 experts of every mixture"
    model = written(small, tmp_path)
    assert model.config.num_hidden_layers == 2
    torch.testing.assert_close(logits(model), live(recipe, pool), rtol=1e-4, atol=2e-5)


def test_where_settings_cannot_say_which_blocks_are_mixtures_it_is_refused(mixtures):
    pool = mixtures("qwen3_moe")  # every second block is a mixture
    recipe = Prune(MEAN, 1 / 3, scope="blocks", units=((0,), (), ()))
    with pytest.raises(InputError, match=r"depends on its number \(decoder_sparse_step\)"):
        Shrunk(Stream(recipe, pool, torch.float32))


def test_a_mixture_without_experts_loses_as_many_as_the_others(mixtures, tmp_path):
    pool = mixtures("mixtral")
    stream = Stream(Prune(MATH, 0.5, scope=SCOPE), pool, torch.float32)
    tensor = stream.tensor
    stream.tensor = lambda name: tensor(name) * (0 if "layers.1.block_sparse_moe" in name else 1)
    small = Shrunk(stream)
    assert small.dropped == "3 of 6 experts of every mixture"
    assert written(small, tmp_path).config.num_local_experts == 3


def test_mixtures_that_lack_different_numbers_are_refused(mixtures):
    pool = mixtures("mixtral")
    rows = ((0, 1), (0, 1), (0, 1)), ((0, 1), (2, 3), (4, 5))
    parents = [Prune(each, 1 / 3, scope=SCOPE, units=row) for each, row in zip((Expert(BASE), MATH), rows, strict=True)]
    child = Merge("linear", tuple(parents), (0.5, 0.5))
    with pytest.raises(InputError, match="different numbers of them: 2 in block 0, 0 in block 1, 0 in block 2; prune"):
        Shrunk(Stream(child, pool, torch.float32))
    with pytest.raises(InputError, match="moe-experts: no expert of a mixture of 6 is zero together with its row"):
        Shrunk(Stream(MATH, pool, torch.float32))


def test_formats_that_leave_nothing_out_refuse_it(mixtures, tmp_path):
    pool = mixtures("olmoe")
    recipe = Cast(Prune(MEAN, 0.5, scope=SCOPE), "float32")
    stream = Stream(recipe, pool, torch.float32)
    with pytest.raises(InputError, match=r"format hf cannot hold this model: 3 of the 6 experts .* format structured"):
        check_whole(stream, "format hf")
    check_whole(Stream(MEAN, pool, torch.float32), "format hf")
    found = {each.format: each for each in estimates(stream, list(FORMATS.values()))}
    assert [name for name, each in found.items() if each.nbytes is not None] == ["structured"]
    assert "3 of the 6 experts in the mixture of block 0 are removed" in found["packed"].gains
    document = encode(recipe) | {
        "experts": {name: {"source": str(pool.checkpoints[name].folder)} for name in (BASE, "math")}
    }
    (tmp_path / "recipe.json").write_text(dumps(document))
    with pytest.raises(InputError, match="a folder of dense weights cannot hold this model"):
        merge(tmp_path / "recipe.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()
