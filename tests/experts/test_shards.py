from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import weights_of

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def sharded(tiny_folders, tmp_path):
    """Return a function that writes an expert in two shards, each changed, and an index of them, changed too."""

    def written(change=lambda one, two, named: None, index=None, to: str = "sharded") -> Path:
        folder = tmp_path / to
        folder.mkdir(parents=True)
        for path in tiny_folders["math"].glob("*.json"):
            shutil.copy(path, folder)
        tensors = load_file(tiny_folders["math"] / "model.safetensors")
        half = len(tensors) // 2
        one, two = dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])
        assert NAME in one
        named = dict.fromkeys(one, ONE) | dict.fromkeys(two, TWO)
        change(one, two, named)
        for file, part in ((ONE, one), (TWO, two)):
            save_file({name: t.clone() for name, t in part.items()}, folder / file, metadata={"format": "pt"})
        document = {"metadata": {}, "weight_map": named} if index is None else index
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / "model.safetensors.index.json").write_text(text)
        return folder

    return written


@pytest.fixture
def whole(tiny_folders):
    return load_file(tiny_folders["math"] / "model.safetensors")


def stale_copy(one, two, named):
    two[NAME] = torch.full_like(one[NAME], 7)


def in_the_other_shard(one, two, named):
    two[NAME] = one.pop(NAME)


def not_in_the_index(one, two, named):
    del named[NAME]


def equal_copies_not_in_the_index(one, two, named):
    two[NAME] = one[NAME]
    del named[NAME]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda *_: None, None),
        (stale_copy, "model.layers.0.mlp.down_proj.weight is in several shards; the one that the index names counts"),
        (in_the_other_shard, "is in another shard than the index says, and read there"),
        (not_in_the_index, "is in the shards though not in the index, and read"),
        (equal_copies_not_in_the_index, "is in several shards"),
    ],
)
def test_the_index_decides_and_every_tensor_is_read(sharded, whole, caplog, change, told):
    with caplog.at_level(logging.WARNING):
        read = Checkpoint(str(sharded(change)))
    assert list(read.tensors) == sorted(whole)
    assert all(torch.equal(read.load(name), tensor) for name, tensor in whole.items())
    assert [told in message for message in caplog.messages[:1]] == ([True] if told else [])


@pytest.mark.parametrize("change", [in_the_other_shard, not_in_the_index, equal_copies_not_in_the_index])
def test_what_transformers_loads_is_what_is_read(sharded, change):
    from transformers import AutoModelForCausalLM

    folder = sharded(change)
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    read = Checkpoint(str(folder))
    assert all(torch.equal(read.load(name), loaded[name]) for name in read.tensors)


def test_a_live_model_has_the_copy_that_the_index_names(sharded, whole):
    pool = ExpertPool.open(str(sharded(stale_copy)), {"same": str(sharded(to="same"))})
    assert pool.fingerprints["base"] == pool.fingerprints["same"]
    assert torch.equal(weights_of(pool, pool.live_model())[NAME], whole[NAME])


def nowhere(one, two, named):
    del one[NAME]


def nowhere_and_once_more(one, two, named):
    del one[NAME]
    named["model.layers.9.extra.weight"] = TWO


def two_and_none_chosen(one, two, named):
    stale_copy(one, two, named)
    del named[NAME]


def gone(one, two, named):
    named[NAME] = "model-00003-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (nowhere, [f"no tensor {NAME} in {ONE}, nor in another shard"]),
        (
            nowhere_and_once_more,
            [
                f"no tensor {NAME} in {ONE}, nor in another shard",
                f"no tensor model.layers.9.extra.weight in {TWO}, nor in another shard",
            ],
        ),
        (two_and_none_chosen, [f"tensor {NAME} differs in {ONE}, {TWO}, and the index chooses none of them"]),
    ],
)
def test_what_the_index_names_must_be_there(sharded, change, lines):
    folder = sharded(change)
    with pytest.raises(InputError, match="the shards do not hold what it names") as caught:
        Checkpoint(str(folder))
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == lines


def test_a_shard_that_is_missing_is_named(sharded):
    with pytest.raises(InputError, match=r"missing: model-00003-of-00002\.safetensors"):
        Checkpoint(str(sharded(gone)))


def test_a_tied_head_that_the_index_names_need_not_be_there(sharded, whole):
    """Written by programs that made the index before they left out what is shared; transformers loads it."""
    folder = sharded(lambda one, two, named: named.update({"lm_head.weight": TWO}))
    read = Checkpoint(str(folder))
    assert read.tied
    assert list(read.tensors) == sorted(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(InputError, match=r"no tensor lm_head\.weight in"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "/etc/passwd", "a/../../b.safetensors", "", "..\\b"])
def test_an_index_names_no_files_elsewhere(sharded, tiny_folders, outside):
    folder = sharded(lambda one, two, named: named.update({NAME: outside}))
    shutil.copy(tiny_folders["math"] / "model.safetensors", folder.parent / "elsewhere.safetensors")
    with pytest.raises(InputError, match="expected names of files in the folder, got"):
        Checkpoint(str(folder))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"metadata": {}}, "expected an object 'weight_map'"),
        ({"weight_map": [NAME]}, "expected an object 'weight_map'"),
        ({"weight_map": {NAME: 1}}, "expected an object 'weight_map'"),
        ({"weight_map": {}}, "it is empty"),
        ([], "expected an index of shards, got list"),
        ("{", "expected an index of shards"),
        ("\x00", "expected an index of shards"),
        (f'{{"weight_map": {{"{NAME}": "{ONE}", "{NAME}": "{TWO}"}}}}', f"it names '{NAME}' twice"),
    ],
)
def test_an_index_that_is_none_is_one_message(sharded, index, message):
    with pytest.raises(InputError, match=message):
        Checkpoint(str(sharded(index=index)))


def test_a_whole_file_beside_shards_counts_as_in_transformers(sharded, tiny_folders, caplog):
    folder = sharded(stale_copy)
    shutil.copy(tiny_folders["code"] / "model.safetensors", folder)
    assert Checkpoint(str(folder)).fingerprint == Checkpoint(str(tiny_folders["code"])).fingerprint
    assert "as in transformers, the former counts" in caplog.text


def test_shards_without_an_index_are_told(sharded):
    folder = sharded()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=rf"no model.safetensors\.index\.json; there is {ONE}, {TWO}"):
        Checkpoint(str(folder))


def test_weights_of_another_name_are_those_that_the_configuration_names(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["math"], tmp_path / "named")
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    assert Checkpoint(str(folder)).fingerprint == Checkpoint(str(tiny_folders["math"])).fingerprint
    for name in ("../math/model.safetensors", "gone.safetensors"):
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
        with pytest.raises(InputError, match=r"config\.json names the weights"):
            Checkpoint(str(folder))
