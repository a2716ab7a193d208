"""The trainer builds every architecture it knows, and the embedded one is what is shipped."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.vocabulary import load_tokenizer
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert
from sae_moo.zoo import MODELS, TASKS, checkpoint, held_out
from sae_moo.zoo.architectures import ARCHITECTURES, EMBEDDED
from sae_moo.zoo.batches import encode
from sae_moo.zoo.tokenizer import save
from sae_moo.zoo.train import BASE_COURSE, EXPERTS, FROZEN, Course, as_read, main, rebuild


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_are_trained_on_the_tokens_that_they_are_asked_by(name: str, tmp_path: Path) -> None:
    built = Tokenizer.from_file(str(checkpoint("base") / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(dict(ARCHITECTURES[name])), encoding="utf-8")
    save(built, tmp_path)
    asked, read = load_tokenizer(tmp_path), as_read(built, ARCHITECTURES[name])
    for task in TASKS:
        items = held_out(task, 50)
        for row, item in zip(
            encode(read, [(str(i["prompt"]), str(i["answer"])) for i in items], end=False), items, strict=True
        ):
            assert [*row.prompt, *row.answer] == asked(f"{item['prompt']}{item['answer']}")["input_ids"]


def test_the_embedded_architecture_is_the_shipped_one() -> None:
    written = json.dumps(dict(ARCHITECTURES[EMBEDDED]), indent=2) + "\n"
    assert written == (checkpoint("base") / "config.json").read_text(encoding="utf-8")
    for course in (BASE_COURSE, *EXPERTS):  # what they are trained by is what the trainer says, bit for bit
        assert course.scaled(1.0) == course


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_trained_into_a_base_and_experts_that_fit_it(name: str, tmp_path: Path) -> None:
    scores = rebuild(tmp_path, name, steps_scale=0.001, items=5)
    assert {model: tuple(by_task) for model, by_task in scores.items()} == dict.fromkeys(MODELS, TASKS)
    pool = ExpertPool.open(str(tmp_path / "base"), {each: str(tmp_path / each) for each in MODELS[1:]})
    assert pool.checkpoints["base"].config["model_type"] == name
    assert pool.groups == ("embeddings", "block.0", "block.1", "block.2", "block.3", "head")
    assert 0.9e6 < sum(tensor.numel for tensor in pool.tensors) < 1.3e6
    for info in pool.tensors:  # embeddings and norms stay the base's, every other matrix has moved
        same = [torch.equal(pool.load("base", info.name), pool.load(expert, info.name)) for expert in MODELS[1:]]
        if any(part in info.name for part in FROZEN):
            assert all(same), info.name
        elif len(info.shape) == 2:
            assert not any(same), info.name
    model = pool.live_model()
    materialize(Expert("math"), pool, model)
    assert all(torch.equal(place, pool.load("math", key).float()) for key, place in pool.parameters(model).items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--architecture", "gpt2"], "--output: name a folder"),
        (["--steps-scale", "0.5"], "--output: name a folder"),
        (["--steps-scale", "nan"], "--steps-scale: expected a number above 0, got nan"),
        (["--items", "0"], "--items: expected at least 1, got 0"),
    ],
)
def test_only_the_embedded_zoo_goes_where_it_is_shipped(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("architecture", [EMBEDDED, "gpt_neox"])
def test_a_catalogue_is_ten_experts_of_one_base_on_items_of_their_own(architecture: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "studies/catalogue/rebuild.py"
    catalogue: dict[str, Any] = runpy.run_path(str(script))
    courses: tuple[Course, ...] = catalogue["COURSES"]
    seeds = {*range(len(MODELS)), *(course.seed for course in courses)}
    assert len(seeds) == len(MODELS) + len({course.name for course in courses}) == 14
    brief = [course for course in courses if course.name in ("math_long", "math_logic")]
    base = catalogue["base_of"](architecture, tmp_path, items=5, scale=0.003)
    assert base == (checkpoint("base") if architecture == EMBEDDED else tmp_path / "base")
    assert [*tmp_path.iterdir()] == ([] if architecture == EMBEDDED else [base])  # and none of the zoo's own experts
    scores = catalogue["rebuild"](base, brief, tmp_path, items=5, scale=0.003)
    assert {name: tuple(by_task) for name, by_task in scores.items()} == dict.fromkeys(
        ("base", "math_long", "math_logic"), TASKS
    )
    pool = ExpertPool.open(str(base), {each.name: str(tmp_path / each.name) for each in brief})
    assert pool.checkpoints["base"].config["model_type"] == architecture
    for info in pool.tensors:
        same = [torch.equal(pool.load("base", info.name), pool.load(each.name, info.name)) for each in brief]
        if any(part in info.name for part in FROZEN):
            assert all(same), info.name
        elif len(info.shape) == 2:
            assert not any(same), info.name
