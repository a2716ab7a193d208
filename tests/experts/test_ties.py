from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import weights_of

from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config
from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert, Merge

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def model(tmp_path):
    """Return a function that saves a small model; its configuration then says of the tie what is given, or nothing."""

    def saved(name: str, seed: int, kind: str = "gemma2", tie: bool | None = None, head=None, told=None):
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        torch.manual_seed(seed)
        config = CONFIG_MAPPING[kind](**SMALL, **({} if tie is None else {"tie_word_embeddings": tie}))
        folder = tmp_path / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        written.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(
            json.dumps(written | ({} if told is None else {"tie_word_embeddings": told}))
        )
        if head is not None:
            tensors = load_file(folder / "model.safetensors")
            head(tensors)
            save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        return folder

    return saved


def copied(tensors):
    tensors[HEAD] = tensors[EMBEDDINGS]


def other(tensors):
    tensors[HEAD] = tensors[EMBEDDINGS] + 1


def alone(tensors):
    tensors[HEAD] = tensors.pop(EMBEDDINGS)


def by_transformers(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("told", [True, False, None])
@pytest.mark.parametrize("head", [None, copied, other])
def test_a_head_is_tied_where_transformers_ties_it(model, kind, tie, told, head):
    """Over what the class does by default, what the configuration says, and what lies in the file."""
    folder = model("m", 0, kind, tie, head, told)
    read, loaded = Checkpoint(str(folder)), by_transformers(folder)
    in_file = HEAD in load_file(folder / "model.safetensors")
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    if tied or in_file:  # else transformers draws a head at random, which no file holds
        assert read.tied is tied
    weights = {name: read.load(name) for name in read.tensors}
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert (HEAD in weights) is not read.tied


@pytest.mark.parametrize("heads", [(None, copied), (copied, None), (copied, copied), (alone, copied), (None, alone)])
def test_experts_merge_whether_the_tied_head_was_written_or_not(model, heads):
    base, expert = (model(f"m{i}", i, head=head) for i, head in enumerate(heads))
    pool = ExpertPool.open(str(base), {"a": str(expert)})
    live = pool.live_model()
    materialize(Merge("linear", (Expert("base"), Expert("a")), (0.25, 0.75)), pool, live)
    ours, theirs = by_transformers(base).state_dict(), by_transformers(expert).state_dict()
    for name, weight in live.state_dict().items():
        torch.testing.assert_close(weight, 0.25 * ours[name] + 0.75 * theirs[name], rtol=0, atol=1e-7)
    assert live.lm_head.weight is live.model.embed_tokens.weight
    stream = Stream(Expert("a"), pool, torch.float32)
    assert HEAD not in {entry.name for entry in stream.entries}


def test_a_head_that_differs_is_told_and_counts(model, caplog):
    base, expert = (model(f"m{i}", i, head=other) for i in range(2))
    with caplog.at_level(logging.WARNING):
        pool = ExpertPool.open(str(base), {"a": str(expert)})
    assert (
        sum(
            "ties lm_head.weight to the embeddings, its files hold a different one" in message
            for message in caplog.messages
        )
        == 2
    )
    live = pool.live_model()
    materialize(Expert("a"), pool, live)
    weights = weights_of(pool, live)
    assert torch.equal(weights[HEAD], weights[EMBEDDINGS] + 1)
    assert deployed_config(pool, torch.float32)["tie_word_embeddings"] is False, "no other loader ties what differs"


def test_a_head_of_its_own_does_not_go_with_a_tied_one(model):
    base, expert = model("m0", 0), model("m1", 1, head=other)
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(base), {"a": str(expert)})
    assert str(caught.value).splitlines()[1:] == ["  - a: head is of its own, the base's is tied to the embeddings"]


def test_a_copy_counts_as_tied_over_a_tied_base_whatever_the_expert_says(model):
    base, expert = model("m0", 0, "llama", True, told=True), model("m1", 1, "llama", True, head=copied, told=False)
    pool = ExpertPool.open(str(base), {"a": str(expert)})
    assert pool.checkpoints["a"].tied
    assert (
        not ExpertPool.open(str(expert), {"a": str(shutil.copytree(expert, expert.parent / "m2"))})
        .checkpoints["base"]
        .tied
    )


def test_nested_configurations_tie_too(tmp_path):
    from transformers import AutoModelForCausalLM, Gemma3Config

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=SMALL,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=49,
        boi_token_index=48,
        eoi_token_index=47,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for part in (written, written["text_config"]):
        part.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(written))
    tensors = load_file(tmp_path / "model.safetensors")
    embeddings = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = "language_model.lm_head.weight" if embeddings.startswith("language_model") else HEAD
    before = Checkpoint(str(tmp_path)).fingerprint
    save_file({**tensors, head: tensors[embeddings].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    again = Checkpoint(str(tmp_path))
    assert again.tied
    assert again.fingerprint == before


NAMED_OTHERWISE = {
    "mamba": {"vocab_size": 50, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
    "openai-gpt": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "bloom": {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "whisper": {
        "vocab_size": 50,
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "encoder_layers": 2,
    },
}


@pytest.mark.parametrize("kind", NAMED_OTHERWISE)
def test_copies_of_what_is_tied_are_left_out_whatever_head_and_embeddings_are_called(tmp_path, kind):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CONFIG_MAPPING[kind](**NAMED_OTHERWISE[kind], tie_word_embeddings=True, **tokens)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    before, state = Checkpoint(str(tmp_path)), model.state_dict()
    (pair,) = model.all_tied_weights_keys.items()
    stored = load_file(tmp_path / "model.safetensors")
    assert len(set(pair) & set(stored)) == 1
    again = {**stored, **{name: state[name].clone() for name in pair}}
    save_file(again, tmp_path / "model.safetensors", {"format": "pt"})
    after = Checkpoint(str(tmp_path))
    assert after.fingerprint == before.fingerprint
    assert set(after.tensors) == set(before.tensors) == set(stored)
