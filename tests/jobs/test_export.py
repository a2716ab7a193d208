"""Streamed folders against what transformers itself would save, for every layout; what surrounds the weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from random_pools import random_pool
from safetensors.torch import load_file

from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config, recipe_document, tokenizer_of, write_surroundings
from sae_moo.deploy.tensor_files import write_shards
from sae_moo.errors import InputError
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.merge import merge
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune

SMALL = {"vocab_size": 512, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MAKES = {
    "tied": (hf.LlamaConfig, hf.LlamaForCausalLM, SMALL | HEADS | {"tie_word_embeddings": True}),
    "untied": (hf.LlamaConfig, hf.LlamaForCausalLM, SMALL | HEADS | {"tie_word_embeddings": False}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, SMALL | HEADS | {"tie_word_embeddings": True}),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, SMALL | HEADS | {"head_dim": 4}),
    "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, SMALL | {"num_attention_heads": 4}),
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, {"vocab_size": 512, "n_embd": 16, "n_layer": 2, "n_head": 4}),
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM, SMALL | HEADS | {"num_local_experts": 2}),
}


def made(root, kind, tokenizer) -> ExpertPool:
    config, make, settings = MAKES[kind]
    return random_pool(root, lambda: make(config(**settings)).bfloat16(), tokenizer=tokenizer)


@pytest.mark.parametrize(("kind", "scope"), [*((kind, "tensor") for kind in MAKES), ("tied", "global")])
def test_a_streamed_folder_loads_as_the_saved_one(tmp_path, tiny, kind, scope):
    pool = made(tmp_path, kind, tiny.tokenizer())
    merged = Merge("task_arithmetic", (Expert("math"),), (0.7,))
    recipe = Cast(Prune(merged, 0.4, scope=scope), "bfloat16")
    model = pool.live_model(torch.bfloat16)
    report = materialize(recipe, pool, model)
    model.save_pretrained(tmp_path / "saved")
    stream = Stream(recipe, pool, torch.bfloat16)
    (tmp_path / "streamed").mkdir()
    write_shards(tmp_path / "streamed", stream.entries, stream.content, 9000)
    write_surroundings(tmp_path / "streamed", pool, deployed_config(pool, torch.bfloat16), pool.tokenizer())
    assert stream.sparsity() == report.sparsity
    assert stream.recipe == report.recipe
    files = {}
    for file in (tmp_path / "streamed").glob("*.safetensors"):
        files |= load_file(file)
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert files.keys() == saved.keys()
    assert all(torch.equal(files[name], weight) for name, weight in saved.items())
    one, other = (hf.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("saved", "streamed"))
    assert (one.dtype, other.dtype) == (torch.bfloat16, torch.bfloat16)
    ours = other.state_dict()
    assert one.state_dict().keys() == ours.keys()
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, ours[name]), name
    assert one.config.to_dict() | {"_name_or_path": ""} == other.config.to_dict() | {"_name_or_path": ""}
    assert one.generation_config.to_dict() == other.generation_config.to_dict()
    head, embeddings = other.get_output_embeddings().weight, other.get_input_embeddings().weight
    assert (head.data_ptr() == embeddings.data_ptr()) == (pool.checkpoints["base"].head is None)


KILLED = """
import os, signal, sys
from sae_moo.jobs.merge import merge
from sae_moo.deploy.stream import Stream

right, passed = Stream.tensor, []


def tensor(self, name):
    if len(passed) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    passed.append(name)
    return right(self, name)


Stream.tensor = tensor
merge(sys.argv[1], sys.argv[2])
"""


def test_a_killed_export_leaves_no_folder_by_its_name(tmp_path, tiny):
    recipe = Cast(Prune(Expert("math"), 0.5), "bfloat16")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_document(recipe, tiny)))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.json"), str(tmp_path / "out")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir() if path.name != "recipe.json"]
    assert len(left) == 1
    assert left[0].startswith(".out.partial-")
    assert (tmp_path / left[0] / "model.safetensors").stat().st_size > 0, "it was killed while writing"
    merge(tmp_path / "recipe.json", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "out"}, "the next one clears up"


def test_what_surrounds_the_weights_is_the_chosen_experts(tmp_path, tiny, tiny_folders):
    folders = {name: shutil.copytree(tiny_folders[name], tmp_path / name) for name in ("base", "math")}
    (folders["math"] / "generation_config.json").write_text('{"eos_token_id": 7}')
    (folders["math"] / "tokenizer.model").write_bytes(b"pieces")
    (folders["math"] / "chat_template.jinja").write_text("{{ messages }}")
    config = json.loads((folders["base"] / "config.json").read_text())
    config |= {"torch_dtype": "float16", "auto_map": {"AutoModel": "code.Model"}, "_name_or_path": "x", "other": 1}
    (folders["base"] / "config.json").write_text(json.dumps(config))
    pool = ExpertPool.open(str(folders["base"]), {"math": str(folders["math"])})
    written = {}
    for name in ("base", "math"):
        written[name] = tmp_path / f"from-{name}"
        written[name].mkdir()
        config = deployed_config(pool, torch.bfloat16)
        write_surroundings(written[name], pool, config, tokenizer_of(pool, name), name)
    assert json.loads((written["math"] / "generation_config.json").read_text()) == {"eos_token_id": 7}
    assert (written["math"] / "tokenizer.model").read_bytes() == b"pieces"
    assert (written["math"] / "chat_template.jinja").read_text() == "{{ messages }}"
    names = {path.name for path in written["base"].iterdir()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((written["base"] / "config.json").read_text())
    assert {config["dtype"], config["torch_dtype"]} == {"bfloat16"}
    assert config["other"] == 1
    assert not {"auto_map", "_name_or_path"} & set(config)


def test_tokenizers_with_other_rows_are_refused(tmp_path, tiny_folders):
    folders = {name: shutil.copytree(tiny_folders[name], tmp_path / name) for name in ("base", "math", "code")}
    for name, change in (("math", {"brandnew": 99999}), ("code", None)):
        document = json.loads((folders[name] / "tokenizer.json").read_text())
        vocabulary = document["model"]["vocab"]
        if change:
            vocabulary |= {"another": len(vocabulary)}
        else:
            first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
            vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        (folders[name] / "tokenizer.json").write_text(json.dumps(document))
    experts = {name: str(folders[name]) for name in ("math", "code")}
    pool = ExpertPool.open(str(folders["base"]), experts, vocabulary="base")
    with pytest.raises(InputError, match="'math' cannot be used, it has the token 'another' beyond the 512 rows"):
        tokenizer_of(pool, "math")
    with pytest.raises(InputError, match=r"'code' cannot be used, it has the token .* elsewhere"):
        tokenizer_of(pool, "code")


def test_unfinished_files_of_machines_are_told_apart(monkeypatch):
    from sae_moo.files.whole import _mark

    found = []
    for name in ("gpu", "gpu-2", "a" * 60 + "1", "a" * 60 + "2"):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        found.append(_mark())
    assert len(set(found)) == 4
    assert not any(a != b and b.startswith(a) for a in found for b in found)
