"""Models whose class is code beside the weights: merged and handed on with their code, which is never run."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_moo import zoo
from sae_moo.config.document import Config
from sae_moo.deploy.card import Card
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.order import Order
from sae_moo.deploy.packing import unpack
from sae_moo.deploy.stream import Stream
from sae_moo.errors import InputError
from sae_moo.experts.code import code_files, is_inside
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.tokenizer_files import TokenizerFiles, tokenizer_to_write
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.evaluate import evaluate
from sae_moo.jobs.merge import merge
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge

RAN = "from pathlib import Path\nPath(__file__).with_name('RAN').touch()\nPath({mark!r}).touch()\n"
CODE = {
    "configuration_my.py": "from transformers import LlamaConfig\nclass MyConfig(LlamaConfig):\n    model_type = 'my'\n",
    "modeling_my.py": "from transformers import LlamaForCausalLM\nfrom .configuration_my import MyConfig\n"
    "from .layers_my import (\n    LAYERS,\n)\n\nclass MyForCausalLM(LlamaForCausalLM):\n    config_class = MyConfig\n",
    "layers_my.py": "\nfrom .rotary_my import BASE  # and what that imports\nLAYERS = BASE\n",
    "rotary_my.py": "BASE = 1\n",
    "not_named.py": "raise SystemExit\n",
}
AUTO_MAP = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyForCausalLM"}


@pytest.fixture
def mark(tmp_path) -> Path:
    """What is there once any of the code has run."""
    return tmp_path / "RAN"


@pytest.fixture
def custom(tmp_path, tiny_folders, mark, monkeypatch) -> Path:
    """Three folders of a model of a kind that transformers does not know, and somebody who says yes to everything."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    for name, source in (("base", "base"), ("a", "math"), ("b", "code")):
        shutil.copytree(tiny_folders[source], tmp_path / name)
        (tmp_path / name / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config |= {"model_type": "my", "architectures": ["MyForCausalLM"], "auto_map": AUTO_MAP}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        for file, text in CODE.items():
            (tmp_path / name / file).write_text(text + RAN.format(mark=str(mark)))
    return tmp_path


def configuration(root: Path, **more) -> Path:
    models = [{"model": str(root / name), "parameters": {"weight": 0.5}} for name in "ab"]
    document = {"merge_method": "task_arithmetic", "base_model": str(root / "base"), "models": models}
    (root / "m.yaml").write_text(yaml.safe_dump(document | more))
    return root / "m.yaml"


def with_tokenizer_code(root: Path) -> None:
    """Tokenizers of which only code knows how they work."""
    for name in ("base", "a", "b"):
        (root / name / "tokenizer.json").unlink()
        settings = {"auto_map": {"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}, "chat_template": "{{ 1 }}"}
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
        (root / name / "my.tiktoken").write_text("aGk= 0")
        (root / name / "tokenization_my.py").write_text("from .bytes_my import x\n" + RAN.format(mark=root / "RAN"))
        (root / name / "bytes_my.py").write_text("x = 1\n")


def test_code_is_copied_with_a_merge_and_never_run(custom, mark):
    merged = merge(configuration(custom), custom / "out")
    assert merged.notes == ()
    assert not mark.exists()
    files = {file.name for file in (custom / "out").iterdir()}
    assert {name for name in files if name.endswith(".py")} == set(CODE) - {"not_named.py"}
    for name in set(CODE) - {"not_named.py"}:
        assert (custom / "out" / name).read_bytes() == (custom / "base" / name).read_bytes()
    assert json.loads((custom / "out/config.json").read_text())["auto_map"] == AUTO_MAP
    assert "generation_config.json" not in files  # the base has none, and none can be derived without its code
    assert "tokenizer.json" in files
    merge(custom / "out/recipe.json", custom / "again")
    assert (custom / "again/model.safetensors").read_bytes() == (custom / "out/model.safetensors").read_bytes()
    assert not mark.exists()


def test_a_result_loads_by_the_code_that_was_copied(custom, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(custom / "modules"))
    monkeypatch.syspath_prepend(custom / "modules")
    for name in ("base", "a", "b"):
        for file, text in CODE.items():
            (custom / name / file).write_text(text)
    merge(configuration(custom), custom / "out")
    model = AutoModelForCausalLM.from_pretrained(custom / "out", trust_remote_code=True)
    assert type(model).__name__ == "MyForCausalLM"
    name = "model.layers.0.mlp.up_proj.weight"
    assert model.state_dict()[name].equal(load_file(custom / "out/model.safetensors")[name])


def test_a_tokenizer_of_which_only_code_knows_is_copied_as_it_is(custom, mark):
    with_tokenizer_code(custom)
    merge(configuration(custom), custom / "out")
    for name in ("tokenizer_config.json", "my.tiktoken", "tokenization_my.py", "bytes_my.py"):
        assert (custom / "out" / name).read_bytes() == (custom / "base" / name).read_bytes()
    merge(configuration(custom, chat_template="{{ 2 }}"), custom / "other")
    settings = json.loads((custom / "other/tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ 2 }}"
    assert settings["auto_map"] == {"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}
    assert not mark.exists()


def test_its_tokens_are_asked_of_nobody(custom):
    with_tokenizer_code(custom)
    found = tokenizer_to_write(custom / "base")
    assert isinstance(found, TokenizerFiles)
    assert found.chat_template == "{{ 1 }}"
    with pytest.raises(InputError, match=r"own code \(bytes_my.py, tokenization_my.py\) knows its tokens"):
        len(found)
    shutil.copy(zoo.checkpoint("base") / "tokenizer.json", custom / "base")
    assert len(tokenizer_to_write(custom / "base")) == len(AutoTokenizer.from_pretrained(zoo.checkpoint("base")))


def test_what_only_code_can_evaluate_is_refused_before_anything_else(custom, mark):
    config = Config.from_dict(
        {
            "models": {"base": str(custom / "base"), "experts": {"a": str(custom / "a")}},
            "tasks": [{"name": "zoo_math", "search": 6, "test": 4}],
            "objectives": ["zoo_math", "sparsity"],
        },
        str(custom),
    )
    pool = ExpertPool.open(str(custom / "base"), {"a": str(custom / "a")})
    for doing in (
        lambda: Bench.open(config),
        lambda: evaluate(str(custom / "base"), config, "search"),
        lambda: pool.live_model(),
    ):
        with pytest.raises(InputError) as caught:
            doing()
        assert "its class is in code beside the weights (configuration_my.py, " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_class_of_transformers_is_used_where_there_is_one(custom, mark):
    for name in ("base", "a", "b"):
        config = json.loads((custom / name / "config.json").read_text()) | {"model_type": "llama"}
        (custom / name / "config.json").write_text(json.dumps(config))
    pool = ExpertPool.open(str(custom / "base"), {"a": str(custom / "a")})
    assert type(pool.live_model()).__name__ == "LlamaForCausalLM"
    merge(configuration(custom), custom / "out")
    assert (custom / "out/modeling_my.py").is_file()
    assert (custom / "out/generation_config.json").is_file()
    assert not mark.exists()


def test_code_in_folders_is_packed_too(custom, mark):
    for name in ("base", "a"):
        (custom / name / "src").mkdir()
        for file in CODE:
            shutil.move(custom / name / file, custom / name / "src" / file)
        config = json.loads((custom / name / "config.json").read_text())
        config |= {"model_type": "llama", "auto_map": {"AutoModel": "src/modeling_my.MyForCausalLM"}}
        (custom / name / "config.json").write_text(json.dumps(config))
    pool = ExpertPool.open(str(custom / "base"), {"a": str(custom / "a")})
    recipe = Cast(Merge("linear", (Expert("a"),), (1.0,)), "float32")
    order = Order(
        format=FORMATS["packed"], output=custom / "packed", stream=Stream(recipe, pool, pool.tensors[0].dtype),
        sparsity=materialize(recipe, pool, pool.live_model()).sparsity, whose="it", card=Card("m", "why", {}, {}),
        tokenizer=pool.tokenizer(), merge=merge,
    )  # fmt: skip
    order.write()
    unpack(custom / "packed", custom / "out")
    found = {file.name for file in (custom / "out/src").iterdir()}
    assert found == set(CODE) - {"not_named.py"}
    assert not mark.exists()


def test_code_that_is_not_there_is_told_and_no_reason_to_refuse(custom):
    (custom / "base/rotary_my.py").unlink()
    assert merge(configuration(custom), custom / "out").notes == (
        f"rotary_my.py, which auto_map in {custom / 'base'} names, is not there and cannot be copied",
    )
    assert "auto_map" not in json.loads((custom / "out/config.json").read_text())


@pytest.mark.parametrize(
    "reference", ["../evil.Class", "/etc/evil.Class", "a/../../evil.Class", ".hidden.Class", "Class"]
)
def test_code_outside_of_the_folder_is_refused_before_anything_is_written(custom, reference):
    config = json.loads((custom / "base/config.json").read_text()) | {"auto_map": {"AutoModel": reference}}
    (custom / "base/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="auto_map names"):
        merge(configuration(custom), custom / "out")
    assert not list(custom.glob("*out*"))


def test_code_of_another_repository_is_left_there(custom):
    config = json.loads((custom / "base/config.json").read_text())
    config["auto_map"] = {"AutoConfig": "owner/name--configuration_my.MyConfig", "AutoModel": None, "x": [None, 3]}
    (custom / "base/config.json").write_text(json.dumps(config))
    assert code_files(custom / "base", ("config.json", "absent.json")) == ([], [])
    assert merge(configuration(custom), custom / "out").notes == ()


def test_imports_are_found_as_python_would_find_them(tmp_path):
    files = {
        "m.py": "import os\nfrom torch import nn\nfrom .a import x\nif True:\n    from .b.c import y\n"
        "from . import (\n    d as e,\n    f,\n)\n# from .not_this import z\nfrom .. import outside\nfrom .m import again\n",
        "a.py": "from .gone import x\n",
        "b/c.py": "from ..d import x\nfrom .e import x\n",
        "b/e.py": "",
        "d.py": "",
        "f/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "m.Model"}}')
    assert code_files(tmp_path, ("config.json",)) == (sorted(files), ["gone.py"])


@pytest.mark.parametrize(
    ("name", "inside"),
    [("a.py", True), ("a/b.py", True), ("", False), ("../a", False), ("/a", False), ("a//b", False), (".a", False),
     ("a/.b", False), ("a\\b", False), ("a/..", False), ("a\x00", False)],
)  # fmt: skip
def test_names_that_stay_in_their_folder(name, inside):
    assert is_inside(name) is inside
