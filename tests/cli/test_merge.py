"""Merging without a search from the command line: recipes and mergekit configurations, read and written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import call, refused


def test_a_recipe_whose_experts_moved_is_merged_from_where_they_are(here, tiny_folders):
    nodes = {"schema": 1, "nodes": [{"node": "expert", "name": "math"}]}
    experts = {name: {"source": f"/elsewhere/{name}"} for name in ("base", "math")}
    (here / "recipe.json").write_text(json.dumps(nodes | {"experts": experts}))
    assert "no such folder: /elsewhere/base" in refused("merge", "recipe.json", "-o", "out")
    moved = [f"--expert={name}={tiny_folders[name]}" for name in ("base", "math")]
    call("merge", "recipe.json", "-o", "out", *moved)
    assert (here / "out/model.safetensors").is_file()
    assert "holds no expert 'maths' (did you mean 'math'?)" in refused(
        "merge", "recipe.json", "-o", "o", "--expert=maths=x"
    )
    assert "expected NAME=SOURCE" in refused("merge", "recipe.json", "-o", "o", "--expert=math")


def test_a_recipe_whose_expert_changed_is_refused(here, tiny_folders):
    recipe = {"schema": 1, "nodes": [{"node": "expert", "name": "math"}]}
    experts = {
        "base": {"source": str(tiny_folders["base"])},
        "math": {"source": str(tiny_folders["math"]), "fingerprint": "0"},
    }
    (here / "recipe.json").write_text(json.dumps(recipe | {"experts": experts}))
    assert "expert 'math' has other weights" in refused("merge", "recipe.json", "--output", "out")
    del experts["math"]["fingerprint"]
    (here / "recipe.json").write_text(json.dumps(recipe | {"experts": experts}))
    assert json.loads(call("merge", "recipe.json", "--output", "out", "--json").stdout)["sparsity"] == 0.0


@pytest.fixture
def beside(here, tiny_folders) -> Path:
    """The current folder with the tiny models in it and a mergekit configuration of them."""
    for name, folder in tiny_folders.items():
        (here / name).symlink_to(folder)
    (here / "m.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nparameters: {int8_mask: true}\nmodels:\n"
        "  - {model: math, parameters: {weight: [0.5, 1]}}\n  - {model: ./code, parameters: {weight: 0.25}}\n"
        "dtype: bfloat16\ntokenizer: {source: ./code}\nchat_template: '{{ messages }}'\n"
    )
    return here


def test_a_mergekit_configuration_is_merged(beside):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    document = json.loads(call("merge", "m.yaml", "--output", "out", "--json").stdout)
    assert (document["output"], document["sparsity"]) == ("out", 0.0)
    assert [note.split()[0] for note in document["notes"]] == ["int8_mask", "dtype"]
    base, math, code, out = (load_file(beside / name / "model.safetensors") for name in ("base", "math", "code", "out"))
    name = "model.layers.1.mlp.up_proj.weight"
    expected = base[name] + (math[name] - base[name]) + 0.25 * (code[name] - base[name])
    assert torch.equal(out[name], expected.bfloat16())
    assert AutoTokenizer.from_pretrained(beside / "out").chat_template == "{{ messages }}"
    assert "mergekit configuration m.yaml" in (beside / "out/README.md").read_text()
    call("merge", "out/recipe.json", "--output", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()


def test_a_merge_that_overflows_is_not_written(beside):
    (beside / "huge.yaml").write_text(
        (beside / "m.yaml").read_text().replace("weight: 0.25", "weight: 1.0e30").replace("bfloat16", "float16")
    )
    result = call("merge", "huge.yaml", "-o", "out", code=1)
    assert "huge.yaml: the merged weights are not finite in model.embed_tokens.weight" in result.stderr
    assert not (beside / "out").exists()


def test_notes_are_told_on_stderr(beside):
    result = call("merge", "m.yaml", "--output", "out")
    assert result.stdout == "out: sparsity 0.0000\n"
    assert "sae-moo: int8_mask changes mergekit's use of memory, no result" in result.stderr


def test_bad_mergekit_configurations_write_nothing(beside):
    text = (beside / "m.yaml").read_text()
    (beside / "bad.yml").write_text(text.replace("weight: 0.25", "wight: 0.25"))
    message = refused("merge", "bad.yml", "-o", "out")
    assert "bad.yml:6: models[1]: task_arithmetic: expected a value of weight for ./code, there is none" in message
    (beside / "bad.yml").write_text(text.replace("math", "nowhere/at/all"))
    assert "no such folder" in refused("merge", "bad.yml", "-o", "out")
    (beside / "bad.yml").write_text(text.replace("weight: 0.25", "weight: [{filter: mlp, value: 1}]"))
    assert "bad.yml:6: models[1]: expected a value of weight for ./code for every tensor" in refused(
        "merge", "bad.yml", "-o", "out"
    )
    assert "cannot read the mergekit configuration none.yaml" in refused("merge", "none.yaml", "-o", "out")
    assert "holds no expert 'maths' (did you mean 'math'?)" in refused(
        "merge", "m.yaml", "-o", "out", "--expert=maths=math"
    )
    assert not (beside / "out").exists()


def with_another_token(beside, tiny_folders):
    """Give `code` a tokenizer with a token more, in a row of its own."""
    from safetensors.torch import load_file, save_file

    (beside / "code").unlink()
    shutil.copytree(tiny_folders["code"], beside / "code")
    tokenizer = json.loads((beside / "code/tokenizer.json").read_text())
    rows = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["another"] = rows
    (beside / "code/tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(beside / "code/model.safetensors")
    changed = {
        name: torch.cat([w, torch.full((1, *w.shape[1:]), 3.0)]) if len(w) == rows else w for name, w in weights.items()
    }
    save_file(changed, beside / "code/model.safetensors", {"format": "pt"})
    config = json.loads((beside / "code/config.json").read_text())
    (beside / "code/config.json").write_text(json.dumps(config | {"vocab_size": rows + 1}))
    return rows


@pytest.mark.parametrize("source", ["./code", "union"])
def test_a_tokenizer_with_tokens_that_others_lack_gives_them_rows(beside, tiny_folders, source):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = with_another_token(beside, tiny_folders)
    (beside / "m.yaml").write_text((beside / "m.yaml").read_text().replace("source: ./code", f"source: {source}"))
    call("merge", "m.yaml", "-o", "out")
    out = load_file(beside / "out/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(out[rows], torch.full_like(out[rows], 3.0)), "only one model knows it"
    assert AutoTokenizer.from_pretrained(beside / "out").get_vocab()["another"] == rows
    assert AutoModelForCausalLM.from_pretrained(beside / "out").config.vocab_size == rows + 1
    call("merge", "out/recipe.json", "-o", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()


def test_folders_without_a_tokenizer_are_merged(beside, tiny_folders):
    for name in ("base", "math", "code"):
        (beside / name).unlink()
        shutil.copytree(tiny_folders[name], beside / name, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    (beside / "m.yaml").write_text((beside / "m.yaml").read_text().partition("tokenizer:")[0])
    result = call("merge", "m.yaml", "-o", "out")
    assert "sae-moo: none of the models has a tokenizer, so none is written" in result.stderr
    assert not list((beside / "out").glob("tokenizer*"))
    call("merge", "out/recipe.json", "-o", "again")
    shutil.copy(tiny_folders["code"] / "tokenizer.json", beside / "code/tokenizer.json")
    result = call("merge", "m.yaml", "-o", "with")
    assert "the base has no tokenizer, the one of " in result.stderr
    assert (beside / "with/tokenizer.json").is_file()


def test_a_tokenizer_that_cannot_be_loaded_is_copied(beside, tiny_folders):
    """Its class is the model's own code, which is not run; its tokens are in files that can be compared."""
    for name in ("base", "math", "code"):
        (beside / name).unlink()
        shutil.copytree(tiny_folders[name], beside / name)
        vocabulary = json.loads((beside / name / "tokenizer.json").read_text())["model"]["vocab"]
        (beside / name / "tokenizer.json").unlink()
        (beside / name / "vocab.json").write_text(json.dumps(vocabulary))
        (beside / name / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    result = call("merge", "m.yaml", "-o", "out")
    assert "its files are copied as they are" in result.stderr
    assert (beside / "out/vocab.json").read_bytes() == (beside / "base/vocab.json").read_bytes()
    assert (beside / "out/chat_template.jinja").read_text() == "{{ messages }}"


def test_layers_that_are_repeated_dropped_and_moved(beside):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    (beside / "f.yaml").write_text(
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: math, layer_range: [0, 2]}]\n"
        "  - sources: [{model: code, layer_range: [1, 2], parameters: {scale: [{filter: layers.1.mlp.down_proj, value: 0.5}]}}]\n"
        "  - sources: [{model: math, layer_range: [0, 1]}]\n"
    )
    call("merge", "f.yaml", "-o", "out")
    math, code, out = (load_file(beside / name / "model.safetensors") for name in ("math", "code", "out"))
    for place, (model, layer) in enumerate([(math, 0), (math, 1), (code, 1), (math, 0)]):
        for rest in ("mlp.down_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight"):
            factor = 0.5 if place == 2 and "down" in rest else 1.0  # a model's own numbers count for its filters
            expected = model[f"model.layers.{layer}.{rest}"] * factor
            assert torch.equal(
                out[f"model.layers.{place}.{rest}"], expected.to(out[f"model.layers.{place}.{rest}"].dtype)
            )
    assert AutoModelForCausalLM.from_pretrained(beside / "out").config.num_hidden_layers == 4
    call("merge", "out/recipe.json", "-o", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()
    assert "whose layers are in another order" in refused("merge", "out/recipe.json", "--to-mergekit", "w.yaml")
    (beside / "f.yaml").write_text((beside / "f.yaml").read_text().replace("[1, 2]", "[7, 8]"))
    assert "expected layers 0 to 1, those that code has, got 7" in refused("merge", "f.yaml", "-o", "o")


MULTI = """\
name: half
merge_method: linear
models:
  - {model: math, parameters: {weight: 1}}
  - {model: code, parameters: {weight: 1}}
---
merge_method: task_arithmetic
base_model: half
models: [{model: law, parameters: {weight: 0.5}}]
"""


def test_merges_of_one_file_that_take_each_other(beside):
    from safetensors.torch import load_file

    (beside / "m.yaml").write_text(MULTI)
    result = call("merge", "m.yaml", "-o", "out")
    assert "half: written to out-half" in result.stderr
    math, code, law, half, out = (
        load_file(beside / name / "model.safetensors") for name in ("math", "code", "law", "out-half", "out")
    )
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(half[name], (math[name] + code[name]) / 2)
    torch.testing.assert_close(out[name], (half[name] + law[name]) / 2)
    call("merge", "out/recipe.json", "-o", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()
    shutil.rmtree(beside / "out")
    assert "out-half: exists already" in refused("merge", "m.yaml", "-o", "out")


def test_merges_of_one_file_that_have_nothing_to_do_with_each_other(beside):
    one = "name: {}\nmerge_method: karcher\nmodels: [{{model: math}}, {{model: code}}]\n"
    (beside / "m.yaml").write_text("---\n".join(map(one.format, ("a", "b"))))
    call("merge", "m.yaml", "-o", "out")
    assert sorted(path.name for path in (beside / "out").iterdir()) == ["a", "b"]
    (beside / "m.yaml").write_text("---\n".join([one.format("c"), one.format("d").replace("code", "/nowhere/x")]))
    assert refused("merge", "m.yaml", "-o", "other") == (
        "sae-moo: m.yaml: cannot open:\n  - d: no such folder: /nowhere/x\n"
    )
    assert not (beside / "other").exists()


def test_with_the_bases_tokenizer_rows_are_matched_by_token(beside, tiny_folders):
    from safetensors.torch import load_file, save_file

    (beside / "code").unlink()
    shutil.copytree(tiny_folders["code"], beside / "code")
    tokenizer = json.loads((beside / "code/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    a, b = vocabulary[first], vocabulary[second]
    vocabulary[first], vocabulary[second] = b, a
    (beside / "code/tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(beside / "code/model.safetensors")
    weights["model.embed_tokens.weight"][[a, b]] = weights["model.embed_tokens.weight"][[b, a]]
    save_file(weights, beside / "code/model.safetensors", {"format": "pt"})
    text = (beside / "m.yaml").read_text().replace("tokenizer: {source: ./code}", "tokenizer_source: base")
    (beside / "m.yaml").write_text(text)
    call("merge", "m.yaml", "--output", "out")
    (beside / "code").rename(beside / "moved")
    (beside / "code").symlink_to(tiny_folders["code"])
    call("merge", "m.yaml", "--output", "plain")
    assert (beside / "out/model.safetensors").read_bytes() == (beside / "plain/model.safetensors").read_bytes()
    (beside / "code").unlink()
    (beside / "moved").rename(beside / "code")
    call("merge", "out/recipe.json", "--to-mergekit", "w.yaml")
    assert yaml.safe_load((beside / "w.yaml").read_text())["tokenizer"] == {"source": "base"}
    (beside / "m.yaml").write_text(text.replace("tokenizer_source: base", ""))
    assert "2 tokens of the base" in refused("merge", "m.yaml", "-o", "other")


def test_the_chat_template_that_most_models_have(beside, tiny_folders):
    from transformers import AutoTokenizer

    for name, template in (("math", "{{ a }}"), ("code", "{{ b }}"), ("base", "{{ b }}")):
        (beside / name).unlink()
        shutil.copytree(tiny_folders[name], beside / name)
        (beside / name / "chat_template.jinja").write_text(template)
    (beside / "m.yaml").write_text((beside / "m.yaml").read_text().replace("'{{ messages }}'", "auto"))
    call("merge", "m.yaml", "--output", "out")
    assert AutoTokenizer.from_pretrained(beside / "out").chat_template == "{{ b }}"


def test_a_recipe_is_written_for_mergekit_and_read_again(beside):
    call("merge", "m.yaml", "--output", "out")
    document = json.loads(call("merge", "out/recipe.json", "--to-mergekit", "w.yaml", "--json").stdout)
    assert document == {"output": "w.yaml", "notes": []}
    written = yaml.safe_load((beside / "w.yaml").read_text())
    assert written["models"][0]["parameters"] == {"weight": [0.5, 1.0]}
    assert (written["dtype"], written["out_dtype"]) == ("float32", "bfloat16")
    call("merge", "w.yaml", "--output", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()


def test_what_cannot_be_written_for_mergekit(beside):
    nodes = [{"node": "expert", "name": "math"}]
    nodes.append({"node": "prune", "inputs": [0], "sparsity": 0.5, "criterion": "magnitude", "scope": "tensor"})
    experts = {name: {"source": name} for name in ("base", "math")}
    (beside / "recipe.json").write_text(json.dumps({"schema": 1, "nodes": nodes, "experts": experts}))
    assert "recipe.json: mergekit cannot say this: it does not prune" in refused(
        "merge", "recipe.json", "--to-mergekit", "w.yaml"
    )
    assert "is a mergekit configuration already" in refused("merge", "m.yaml", "--to-mergekit", "w.yaml")
    assert "there is no folder none" in refused("merge", "recipe.json", "--to-mergekit", "none/w.yaml")
    assert "m.yaml: exists already" in refused("merge", "recipe.json", "--to-mergekit", "m.yaml")
    for arguments in ([], ["--output", "out", "--to-mergekit", "w.yaml"]):
        assert "expected either --output DIR or --to-mergekit FILE.yaml" in refused("merge", "recipe.json", *arguments)
    assert not list(beside.glob("*w.yaml*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a recipe as JSON"),
        ("[]", "expected a recipe as a JSON object, got list"),
        ('{"schema": 1, "nodes": [{"node": "expert", "name": "a"}]}', 'expected "experts"'),
    ],
)
def test_bad_recipes(here, content, message):
    (here / "recipe.json").write_text(content)
    assert message in refused("merge", "recipe.json", "--output", "out")
    assert not (here / "out").exists()
