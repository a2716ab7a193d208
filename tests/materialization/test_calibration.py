"""Activation norms: against a plain reference of the same forward pass, kept, named by content, refused when wrong."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
import torch
from random_pools import random_gpt2
from stand_ins import weights_of

from sae_moo.errors import InputError
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import calibration
from sae_moo.materialization.calibration import (
    add_norms,
    calibrate,
    file_name,
    load_calibration,
    norms_digest,
    save_calibration,
)
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.ops.prune import target_count
from sae_moo.materialization.resolve import resolve
from sae_moo.materialization.texts import read_texts, tokenised
from sae_moo.recipe import Cast, Expert, Merge, Prune

MATH = Expert("math")
TEXTS = ["2 plus 3 is 5", "the cat sat on the mat", "9 plus 9 is 18 and more", "one", "7 plus 1 is 8"]


@pytest.fixture
def pool(tiny) -> ExpertPool:
    """A pool without norms, over the same checkpoints."""
    return ExpertPool(tiny.checkpoints)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sae_moo" / "calibrations"


def plain_llama(model, sequences) -> dict[str, torch.Tensor]:
    """The same forward pass written out in float64: what every matrix of every block reads."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    total: dict[str, torch.Tensor] = {}

    def read(name, x):
        total[name] = total.get(name, 0) + (x**2).sum(dim=0)
        return x @ weights[name].T

    def norm(name, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    def rotated(x, length):
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        half = width // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    for tokens in sequences:
        length = len(tokens)
        x = weights["model.embed_tokens.weight"][tokens]
        for i in range(config.num_hidden_layers):
            at = f"model.layers.{i}"
            h = norm(f"{at}.input_layernorm.weight", x)
            q, k, v = (
                read(f"{at}.self_attn.{p}_proj.weight", h).view(length, heads, width).transpose(0, 1) for p in "qkv"
            )
            scores = rotated(q, length) @ rotated(k, length).transpose(1, 2) / math.sqrt(width)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)
            x = x + read(f"{at}.self_attn.o_proj.weight", mixed)
            h = norm(f"{at}.post_attention_layernorm.weight", x)
            gated = torch.nn.functional.silu(read(f"{at}.mlp.gate_proj.weight", h)) * read(
                f"{at}.mlp.up_proj.weight", h
            )
            x = x + read(f"{at}.mlp.down_proj.weight", gated)
    return {name: sums.sqrt() for name, sums in total.items()}


def test_norms_are_those_of_the_forward_pass(pool, empty_cache):
    digest = calibrate(pool, TEXTS, model="code")
    model = pool.live_model()
    materialize(Expert("code"), pool, model)
    expected = plain_llama(model, tokenised(pool.tokenizer(), TEXTS, 4096, 128))
    assert set(pool.norms[digest]) == set(expected) == {info.name for info in pool.tensors if info.prunable}
    for name, row in pool.norms[digest].items():
        assert row.dtype == torch.float32
        torch.testing.assert_close(row.double(), expected[name], rtol=2e-5, atol=1e-6)


def test_transposed_layers_are_read_along_their_inputs(tmp_path, empty_cache):
    pool = random_gpt2(tmp_path)
    digest = calibrate(pool, TEXTS, tokens=20)
    assert {len(row) for row in pool.norms[digest].values()} == {16, 64}
    seen = []
    model = pool.live_model()
    model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].double()))
    for sequence in tokenised(pool.tokenizer(), TEXTS, 20, 16):
        model(input_ids=torch.tensor([sequence]))
    expected = (torch.cat(seen) ** 2).sum(dim=0).sqrt()
    name = next(name for name in pool.norms[digest] if name.endswith("h.1.mlp.c_proj.weight"))
    torch.testing.assert_close(pool.norms[digest][name].double(), expected, rtol=1e-5, atol=1e-6)
    report = materialize(Prune(MATH, 0.25, "wanda", "row", calibration=digest), pool, model)
    weight = pool.parameters(model)[name]
    scores = pool.load("math", name).float().abs() * pool.norms[digest][name][:, None]
    assert report.sparsity == 0.25
    for column in range(16):
        assert set(torch.nonzero(weight[:, column] == 0).flatten().tolist()) == set(
            scores[:, column].argsort()[:16].tolist()
        )
    materialize(Prune(MATH, 0.5, scope="2:4"), pool, model)
    for info in pool.tensors:
        if info.prunable:
            zeros = (pool.parameters(model)[info.name] == 0).t().reshape(info.shape[1], -1, 4).sum(-1)
            assert (zeros == 2).all()


def test_sequences(tiny):
    tokenizer = tiny.tokenizer()
    ids = [tokenizer(text).input_ids for text in TEXTS]
    assert tokenised(tokenizer, TEXTS, 4096, 100) == [row for row in ids if len(row) > 1]
    assert tokenised(tokenizer, ids, 4096, 100) == [row for row in ids if len(row) > 1]
    for tokens in (2, 3, 7, 12):
        cut = tokenised(tokenizer, TEXTS, tokens, 4)
        assert tokens - 1 <= sum(map(len, cut)) <= tokens
        assert all(2 <= len(row) <= 4 for row in cut)
    assert tokenised(tokenizer, [[1, 2, 3, 4, 5]], 99, 2) == [[1, 2], [3, 4]], "one alone has no context"


def test_a_second_time_costs_no_forward_pass(tiny, pool, empty_cache, monkeypatch):
    first = calibrate(pool, TEXTS)
    assert len(list(empty_cache.iterdir())) == 2

    def refuse(*args):
        raise AssertionError("a live model was built")

    again = ExpertPool(tiny.checkpoints)
    monkeypatch.setattr(again, "live_model", refuse)
    assert calibrate(again, TEXTS) == first == norms_digest(again.norms[first])
    for changes in ({"tokens": 9}, {"model": "law"}, {"texts": TEXTS[1:]}, {"dtype": "bfloat16"}):
        with pytest.raises(AssertionError, match="a live model was built"):
            calibrate(again, **({"texts": TEXTS} | changes))


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"torn"), lambda file: file.unlink()])
def test_a_spoilt_cache_is_made_again(tiny, empty_cache, spoil):
    first = calibrate(ExpertPool(tiny.checkpoints), TEXTS)
    spoil(empty_cache / file_name(first))
    assert calibrate(ExpertPool(tiny.checkpoints), TEXTS) == first
    assert (empty_cache / file_name(first)).stat().st_size > 1000


def test_no_cache_folder_only_costs_time(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(calibrate(ExpertPool(tiny.checkpoints), TEXTS)) == 64


@pytest.mark.parametrize("scope", ["tensor", "group", "global", "row"])
def test_exact_counts_of_the_lowest_scores(pool, tiny_model, scope):
    digest = calibrate(pool, TEXTS)
    report = materialize(Prune(MATH, 0.4, "wanda", scope, calibration=digest), pool, tiny_model)
    units: dict[object, list] = {}
    for info in (info for info in pool.tensors if info.prunable):
        weight = pool.load("math", info.name)
        scores = weight.abs() * pool.norms[digest][info.name]
        gone = pool.parameters(tiny_model)[info.name] == 0
        for i in range(info.shape[0]):
            place = {"tensor": info.name, "group": info.group, "global": 0, "row": (info.name, i)}[scope]
            units.setdefault(place, []).append((scores[i], gone[i]))
    for rows in units.values():
        scores, gone = (torch.cat(column) for column in zip(*rows, strict=True))
        assert int(gone.sum()) == target_count(0.4, len(scores))
        assert scores[gone].max() < scores[~gone].min()
    again = materialize(report.recipe, pool, tiny_model)
    assert again.recipe is report.recipe
    assert again.sparsity == report.sparsity


def test_magnitude_and_wanda_of_one_expert_are_remembered_apart(pool, tiny_model):
    first, second = calibrate(pool, TEXTS[:2]), calibrate(pool, TEXTS[2:])
    seen = []
    for _ in range(2):
        for arguments in (
            {},
            {"criterion": "wanda", "calibration": first},
            {"criterion": "wanda", "calibration": second},
        ):
            assert materialize(Prune(MATH, 0.5, **arguments), pool, tiny_model).sparsity == 0.5
            seen.append(torch.cat([w.flatten() for w in weights_of(pool, tiny_model).values()]))
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert not any(torch.equal(seen[i], seen[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_norms_travel_beside_a_recipe(tiny, pool, tiny_model, tmp_path, empty_cache):
    digest = calibrate(pool, TEXTS)
    recipe = Cast(Prune(Merge("linear", (MATH, Expert("code")), (1, 1)), 0.5, "wanda", calibration=digest), "float32")
    materialize(recipe, pool, tiny_model)
    before = weights_of(pool, tiny_model)
    save_calibration(recipe, pool, tmp_path)
    other = ExpertPool(tiny.checkpoints)
    load_calibration(recipe, other, tmp_path / "elsewhere")
    assert digest in other.norms, "from the user's cache"
    shutil.rmtree(empty_cache)
    other = ExpertPool(tiny.checkpoints)
    with pytest.raises(
        InputError, match=rf"holds no activation norms {digest}; it holds none. sae_moo.calibrate makes"
    ):
        materialize(recipe, other, tiny_model)
    load_calibration(recipe, other, tmp_path)
    materialize(recipe, other, tiny_model)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(other, tiny_model).items())
    other = dataclasses.replace(recipe.input, calibration="0" * 64)
    (tmp_path / file_name(digest)).rename(tmp_path / file_name("0" * 64))
    with pytest.raises(InputError, match=f"expected the activation norms 0000.*, it holds {digest}"):
        load_calibration(other, pool, tmp_path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "expected texts of at least 2 tokens; of 0 texts there is none"),
        ([""], "of 1 texts the longest has 0"),
        (["", [3]], "of 2 texts the longest has 1"),
        ([None], "expected texts, or token ids, got None"),
        ([["a", "b"]], r"expected texts, or token ids, got \['a', 'b'\]"),
        ([[1, 99999]], "expected token ids below 512, got 99999"),
    ],
)
def test_texts_that_say_nothing(pool, texts, message):
    with pytest.raises(InputError, match=message):
        calibrate(pool, texts)
    assert not pool.norms


def test_unknown_models_and_numbers_of_tokens(pool):
    with pytest.raises(InputError, match=r"no model named 'maths' \(did you mean 'math'\?\); there are base, math"):
        calibrate(pool, TEXTS, model="maths")
    with pytest.raises(InputError, match="expected at least 2 tokens, got 1"):
        calibrate(pool, TEXTS, tokens=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite(pool, empty_cache, monkeypatch, value):
    live = pool.live_model

    def broken(*args):
        model = live(*args)
        model.model.layers[1].mlp.up_proj.weight.fill_(value)
        return model

    monkeypatch.setattr(pool, "live_model", broken)
    with pytest.raises(
        InputError, match=r"24 of 24 of model.layers.1.mlp.down_proj.weight are not, the first is (nan|inf)"
    ):
        calibrate(pool, TEXTS)
    assert not pool.norms
    assert not empty_cache.exists(), "nothing broken is kept"


def test_norms_of_ones_own(pool, tiny_model):
    norms = {info.name: torch.ones(info.shape[1]) for info in pool.tensors if info.prunable}
    digest = add_norms(pool, norms)
    assert (
        resolve(Prune(MATH, 0.3, "wanda", "global", calibration=digest), pool).counts
        == resolve(Prune(MATH, 0.3, scope="global"), pool).counts
    )
    name = "model.layers.1.mlp.down_proj.weight"
    for row, message in [
        (torch.ones(24).double(), "expected a row of float32 norms"),
        (-torch.ones(24), "24 of 24 of model.layers.1.mlp.down_proj.weight are not, the first is -1.0"),
    ]:
        with pytest.raises(InputError, match=message):
            add_norms(pool, norms | {name: row})
    with pytest.raises(InputError, match=r"norms for model.layer.1, which is no tensor of the base"):
        add_norms(pool, {"model.layer.1": torch.ones(2)})
    for spoilt, message in [
        ({k: v for k, v in norms.items() if k != name}, f"no activation norms for {name}: in the live model"),
        (norms | {name: torch.ones(16)}, rf"expected 24 norms for {name}, got shape \(16,\)"),
    ]:
        digest = add_norms(pool, spoilt)
        with pytest.raises(InputError, match=message):
            materialize(Prune(MATH, 0.5, "wanda", calibration=digest), pool, tiny_model)


def test_a_criterion_and_its_calibration_belong_together(pool, tiny_model):
    with pytest.raises(InputError, match="'wanda' weighs by activations: give it the digest"):
        materialize(Prune(MATH, 0.5, "wanda"), pool, tiny_model)
    with pytest.raises(InputError, match="'magnitude' needs no calibration, got '0000"):
        materialize(Prune(MATH, 0.5, calibration="0" * 64), pool, tiny_model)


def test_texts_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n \nthree\n\n\n")
    assert [text.strip() for text in read_texts(tmp_path / "a.txt")] == ["one\ntwo", "three"]
    (tmp_path / "a.jsonl").write_text('{"text": "one\\n\\ntwo"}\n\n{"text": "three"}\n')
    assert read_texts(tmp_path / "a.jsonl") == ["one\n\ntwo", "three"]
    for name, content, message in [
        ("b.txt", " \n\n", "expected calibration texts, the file holds none"),
        ("b.jsonl", "", "expected calibration texts, the file holds none"),
        ("c.jsonl", '{"text": 3}', 'c.jsonl:1: expected an object with "text"'),
        ("d.jsonl", "{", "d.jsonl:1: not JSON"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            read_texts(tmp_path / name)
    with pytest.raises(InputError, match="cannot read calibration texts"):
        read_texts(tmp_path / "gone.txt")
    assert calibration.TOKENS == 4096
