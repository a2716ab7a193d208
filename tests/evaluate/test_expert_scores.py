from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import sae_moo
from sae_moo.evaluate import expert_scores
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.evaluate.expert_scores import ExpertScores
from sae_moo.evaluate.hardware import PASSES
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.sizes import BatchSizes
from sae_moo.evaluate.tasks import Item, ItemTask, split_items
from sae_moo.experts.pool import ExpertPool
from sae_moo.files import user_cache
from sae_moo.objectives import Evaluation
from sae_moo.recipe import Cast, Expert, Prune

MATH = Cast(Expert("math"), "float32")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sae_moo" / "scores"


def task(pool, count=10) -> ItemTask:
    items = [Item(f"question {i} is", (f" {i}",)) for i in range(count + 5)]
    return ItemTask("a", "likelihood", split_items("a", items, count, 5), pool.tokenizer())


def evaluator(pool, model, one, blocks=1) -> Evaluator:
    return Evaluator(pool, model, Scorer([one], blocks=blocks), known=ExpertScores(pool, [one], "cpu", blocks=blocks))


def test_an_expert_is_evaluated_once_on_a_machine(tiny, tiny_model, empty, monkeypatch):
    first = evaluator(tiny, tiny_model, task(tiny)).evaluate(MATH)
    assert first.ok
    assert first.seconds_score > 0
    later = evaluator(tiny, tiny_model, task(tiny))
    monkeypatch.setattr(later.scorer, "score_parts", None)  # asked again, it would raise
    second = later.evaluate(MATH)
    assert (second.scores, second.sparsity, second.group_sparsity) == (
        first.scores,
        first.sparsity,
        first.group_sparsity,
    )
    assert second.seconds_score == 0
    assert [path.suffix for path in empty.iterdir()] == [""], "one file, nothing half written"


def test_scores_are_of_the_number_of_tokens_that_was_computed_at_once(tiny, tiny_model, empty):
    """Where it was measured. It may be known only once the first expert was evaluated."""
    one = task(tiny)
    kept = ExpertScores(tiny, [one], "cpu", sizes=(sizes := BatchSizes("cpu")))
    evaluation = Evaluator(tiny, tiny_model, Scorer([one])).evaluate(MATH)
    sizes.choose(PASSES, 4096)
    kept.keep(evaluation)
    for chosen, found in (({PASSES.what: 4096}, True), ({PASSES.what: 8192}, False), ({}, False)):
        again = ExpertScores(tiny, [one], "cpu", sizes=BatchSizes("cpu", chosen)).find(MATH)
        assert (again is not None) == found


@pytest.mark.parametrize(
    "what",
    ["expert", "base", "task", "blocks", "dtype", "threads", "decoding", "library", "code", "tokenizer", "model_code"],
)
def test_anything_else_is_evaluated(tiny, tiny_folders, tiny_model, empty, monkeypatch, what):
    one = task(tiny)
    evaluator(tiny, tiny_model, one).evaluate(MATH)
    pool, blocks, recipe = tiny, 1, MATH
    if what == "expert":
        recipe = Cast(Expert("code"), "float32")
    elif what == "base":
        pool = ExpertPool.open(str(tiny_folders["law"]), {"math": str(tiny_folders["math"])})
    elif what == "task":
        one = task(tiny, 11)
    elif what == "blocks":
        blocks = 2
    elif what == "dtype":
        recipe = Cast(Expert("math"), "bfloat16")
    elif what == "threads":
        monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    elif what in ("tokenizer", "model_code"):
        base = shutil.copytree(tiny.checkpoints["base"].folder, empty.parent / "model")
        file = base / ("tokenizer_config.json" if what == "tokenizer" else "modeling_mine.py")
        file.write_text((file.read_text() if file.exists() else "") + " ")
        pool = ExpertPool.open(str(base), {"math": str(tiny_folders["math"])})
    elif what == "decoding":
        base = shutil.copytree(tiny.checkpoints["base"].folder, empty.parent / "model")
        (base / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
        pool = ExpertPool.open(str(base), {"math": str(tiny_folders["math"])})
        assert pool.fingerprints["base"] == tiny.fingerprints["base"]
    elif what == "library":
        monkeypatch.setattr("sae_moo.evaluate.expert_scores.version", lambda name: "0")
    else:
        monkeypatch.setattr("sae_moo.evaluate.expert_scores._code", lambda: "changed")
    assert ExpertScores(pool, [one], "cpu", blocks=blocks).find(recipe) is None


def test_a_byte_of_the_code_that_composes_adapters_makes_another_key(tiny, tiny_model, empty, tmp_path, monkeypatch):
    one, recipe = task(tiny), MATH
    evaluator(tiny, tiny_model, one).evaluate(recipe)
    copies = []
    for i, file in enumerate(expert_scores.sources()):
        copies.append(tmp_path / f"{i}-{file.name}")
        shutil.copyfile(file, copies[-1])
    monkeypatch.setattr(expert_scores, "sources", lambda: copies)
    monkeypatch.setattr(expert_scores, "_code", expert_scores._code.__wrapped__)  # which remembers
    assert ExpertScores(tiny, [one], "cpu", blocks=1).find(recipe) is not None
    (adapters,) = (copy for copy in copies if copy.name.endswith("-adapter_settings.py"))
    adapters.write_bytes(adapters.read_bytes().replace(b"lora_alpha", b"lora_alphb", 1))
    assert ExpertScores(tiny, [one], "cpu", blocks=1).find(recipe) is None


def test_all_code_that_composes_asks_and_judges_is_in_the_key(tiny_folders, tmp_path, empty):
    """All that runs while an expert that is an adapter is opened and scored, but for what only names, checks, keeps."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(1, 16), f"{module}.lora_B.weight": torch.ones(16, 1)}
    save_file(factors, folder / "adapter_model.safetensors")
    ran: set[str] = set()

    def heard(frame, event, argument) -> None:
        ran.add(frame.f_code.co_filename)

    sys.setprofile(heard)
    try:
        pool = ExpertPool.open(str(tiny_folders["base"]), {"math": str(folder)}, vocabulary="base")
        assert evaluator(pool, pool.live_model(), task(pool)).evaluate(MATH).ok
    finally:
        sys.setprofile(None)
    package = Path(sae_moo.__file__).parent
    own = {Path(file) for file in ran if Path(file).is_relative_to(package)}
    apart = {"errors", "recipe", "objectives", "files", "user_cache", "weight_cache", "zoo"}
    known = set(expert_scores.sources())
    unknown = {str(file.relative_to(package)) for file in own - known}
    assert {name for name in unknown if Path(name).with_suffix("").parts[0] not in apart} == set()
    assert {"adapters.py", "checkpoint.py"} <= {file.name for file in own & known}


def test_what_lies_deeper_in_a_package_is_among_its_sources(tmp_path, monkeypatch):
    (tmp_path / "guest" / "deeper").mkdir(parents=True)
    for name in ("guest/__init__.py", "guest/deeper/__init__.py", "guest/deeper/a.py", "alone.py"):
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = [str(file.relative_to(tmp_path)) for file in expert_scores.sources(["guest", "alone"])]
    assert found == ["alone.py", "guest/__init__.py", "guest/deeper/__init__.py", "guest/deeper/a.py"]
    with pytest.raises(ModuleNotFoundError):
        expert_scores.sources(["guest.moved"])


def test_only_whole_evaluations_of_experts_as_they_stand_are_kept(tiny, tiny_model, empty):
    known = ExpertScores(tiny, [task(tiny)], "cpu", blocks=1)
    evaluator(tiny, tiny_model, task(tiny)).evaluate(Cast(Prune(Expert("math"), 0.5), "float32"))
    known.keep(Evaluation(MATH, reason="out of memory"))
    assert not empty.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"scores": {"a": [2]}}', '{"scores": {"a": [0.5]}, "sparsity": 0}']
)
def test_what_is_damaged_is_computed_again(tiny, tiny_model, empty, content):
    whole = evaluator(tiny, tiny_model, task(tiny)).evaluate(MATH)
    (file,) = empty.iterdir()
    found = json.loads(file.read_text())
    file.write_text(content)
    assert ExpertScores(tiny, [task(tiny)], "cpu", blocks=1).find(MATH) is None
    fewer = found | {"scores": {"a": found["scores"]["a"][1:]}}
    for wrong in (fewer, found | {"sparsity": 7.5}, found | {"group_sparsity": [0.0]}):
        file.write_text(json.dumps(wrong))
        assert ExpertScores(tiny, [task(tiny)], "cpu", blocks=1).find(MATH) is None
    assert evaluator(tiny, tiny_model, task(tiny)).evaluate(MATH).scores == whole.scores


def test_a_cache_that_cannot_be_written_is_no_error(tiny, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert evaluator(tiny, tiny_model, task(tiny)).evaluate(MATH).ok
    assert user_cache.kept("scores", "x") is None


def test_without_a_home_nothing_is_kept_and_nothing_fails(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", nowhere)
    user_cache.keep("scores", "x", "1")
    assert user_cache.kept("scores", "x") is None


@pytest.mark.parametrize("error", [OSError("full"), SafetensorError("full"), KeyboardInterrupt()])
def test_nothing_half_written_stays(empty, error):
    def write(path):
        path.write_text("half")
        raise error

    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            user_cache.keep("scores", "x", write)
    else:
        user_cache.keep("scores", "x", write)
    assert list(empty.iterdir()) == []
