"""The shipped checkpoints: small, complete, loadable without a network, and as good as promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_moo.zoo import MODELS, TASKS, checkpoint, held_out
from sae_moo.zoo.batches import accuracy, encode
from sae_moo.zoo.tokenizer import END_ID, PAD_ID

MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    return {name: AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32) for name in MODELS}


def test_an_unknown_model_is_named_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"'maths'.*base, math, lingua, logic"):
        checkpoint("maths")


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_small_bfloat16_and_tied_once(name: str) -> None:
    path = checkpoint(name) / "model.safetensors"
    assert path.stat().st_size <= 2.5 * MEGABYTE
    with safe_open(path, "pt") as weights:
        keys = list(weights.keys())
        assert "lm_head.weight" not in keys
        assert "model.embed_tokens.weight" in keys
        assert {weights.get_tensor(key).dtype for key in keys} == {torch.bfloat16}
        assert all(bool(weights.get_tensor(key).isfinite().all()) for key in keys)


@pytest.mark.parametrize("name", MODELS)
def test_folders_say_the_same_but_for_the_weights(name: str) -> None:
    def texts(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}

    assert texts(checkpoint(name)) == texts(checkpoint("base"))
    assert json.loads((checkpoint(name) / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is True


def test_models_share_head_and_embeddings_in_memory(models: dict[str, torch.nn.Module]) -> None:
    for model in models.values():
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]


@pytest.mark.parametrize("task", TASKS)
def test_prompt_and_answer_may_be_tokenized_apart(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("base"))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD_ID, END_ID)
    items = held_out(task)
    prompts = tokenizer([item["prompt"] for item in items])["input_ids"]
    answers = tokenizer([item["answer"] for item in items])["input_ids"]
    whole = [f"{item['prompt']}{item['answer']}" for item in items]
    joined = tokenizer(whole)["input_ids"]
    assert [p + a for p, a in zip(prompts, answers, strict=True)] == joined
    assert tokenizer.batch_decode(joined) == whole


def test_each_expert_beats_the_base_on_its_own_task_and_pays_elsewhere(models: dict[str, torch.nn.Module]) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint("base") / "tokenizer.json"))
    score: dict[tuple[str, str], float] = {}
    for task in TASKS:
        rows = encode(tokenizer, [(str(i["prompt"]), str(i["answer"])) for i in held_out(task)[:200]], end=False)
        for name, model in models.items():
            score[name, task] = accuracy(model, rows)  # type: ignore[arg-type]
    for name, own in zip(MODELS[1:], TASKS, strict=True):
        assert score[name, own] > score["base", own] + 0.15
        assert any(score[name, task] < score["base", task] for task in TASKS if task != own)
