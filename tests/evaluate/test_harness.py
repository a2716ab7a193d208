"""Tasks of the EleutherAI harness: every number compared with the harness's own, run on the same documents."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import yaml

from sae_moo.errors import InputError
from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.harness import HarnessTask, _among
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.task import Answer, Prompt, Request
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool

MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        "doc_to_text": "{{question}} is",
        "doc_to_target": "label",
        "doc_to_choice": "{{options}}",
        "num_fewshot": 2,
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
    },
    "writing": {
        "output_type": "generate_until",
        "test_split": "test",
        "validation_split": "validation",
        "doc_to_text": "{{question}} is",
        "doc_to_target": " {{answer}}",
        "generation_kwargs": {"until": ["\n", "."], "do_sample": False, "max_gen_toks": 12},
        "filter_list": [
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "^ ?(\\w+)$"}, {"function": "take_first"}]},
            {"name": "loose", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": [" "], **MEAN}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "validation_split": "test",
        "doc_to_text": "{{question}} is",
        "doc_to_target": " {{answer}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", **MEAN},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}  # fmt: skip
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]


def document(i: int) -> dict:
    a, b = i % 7, i // 7 % 8
    right = NUMBERS[a + b]
    options = [right, NUMBERS[(a + b + 3) % 16], "twenty hundred"]
    turned = options[i % 3 :] + options[: i % 3]
    question = f"Item {i}: {NUMBERS[a]} plus {NUMBERS[b]}"
    return {
        "question": question,
        "answer": right,
        "options": turned,
        "label": turned.index(right),
        "text": f"{question} is {right}. " * (1 + i % 4 * 3),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """YAMLs and documents: 40 train, 30 validation, 50 test; a duplicate within, one across."""
    root = tmp_path_factory.mktemp("harness")
    parts = {"train": range(100, 140), "validation": range(200, 230), "test": [*range(50), 3]}
    files = {}
    for part, numbers in parts.items():
        files[part] = root / f"{part}.jsonl"
        files[part].write_text("".join(json.dumps(document(i)) + "\n" for i in numbers))
    with files["train"].open("a") as file:
        file.write(json.dumps(document(7)) + "\n")
    for name, described in TASKS.items():
        files_now = {part: str(path) for part, path in files.items()}
        task = {"task": f"our_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": files_now}, **described}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(task))
    other = yaml.safe_load((root / "choices.yaml").read_text()) | {"task": "our_other"}
    other["dataset_kwargs"]["data_files"] = {"test": str(files["validation"]), "train": str(files["train"])}
    (root / "other.yaml").write_text(yaml.safe_dump(other))
    (root / "twice.yaml").write_text(yaml.safe_dump({"group": "our_group", "task": ["our_choices", "our_other"]}))
    return root


@pytest.fixture(scope="module")
def pool() -> ExpertPool:
    return ExpertPool({"base": Checkpoint("zoo:math")})


@pytest.fixture(scope="module")
def model(pool):
    return pool.live_model()


@pytest.fixture(scope="module")
def tokenizer(pool):
    tokenizer = pool.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


@pytest.fixture
def task(folder, pool, tokenizer):
    def built(name: str, search: int = 12, test: int = 15, **changes) -> HarnessTask:
        asked = {"include": str(folder), "multiturn": False} | changes
        return HarnessTask(
            TaskSection(name=name, task=f"our_{name}", search=search, test=test, **asked),
            tokenizer,
            pool.checkpoints["base"].folder,
        )

    return built


def by_the_harness(built: HarnessTask, model, tokenizer, folder: Path, **settings):
    """The harness's own results and samples on the test documents of a task."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ids: dict[str, list[int]] = {}
    for instance in built._instances["test"]:
        ids.setdefault(built._leaves[instance.leaf].task_name, []).append(instance.doc_id)
    with lm_eval.quiet():
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
            tasks=[built._section.task],
            samples=ids,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=lm_eval.BOOTSTRAP,
            **settings,
        )


@pytest.mark.filterwarnings("default")  # the harness's own
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", [*TASKS, "group"])
def test_every_number_is_the_harness_s_own(name, chat, task, model, tokenizer, folder):
    how = {"chat_template": True, "system_prompt": "Be brief.", "multiturn": True} if chat else {}
    built = task(name, **how)
    scorer = Scorer([built], tokenizer=tokenizer)
    answers = scorer.answers(model, "test")[name]
    metrics = built.metrics("test", answers)
    settings = {"apply_chat_template": True, "system_instruction": "Be brief.", "fewshot_as_multiturn": True}
    theirs = by_the_harness(built, model, tokenizer, folder, **(settings if chat else {}))
    compared = 0
    for leaf, found in theirs["results"].items():
        for key, value in found.items():
            metric, comma, chosen = key.partition(",")
            ours = metrics.get(f"{leaf}/" * (name == "group") + f"{metric.removesuffix('_stderr')},{chosen}")
            if not comma or ours is None:
                continue
            compared += 1
            if not metric.endswith("_stderr"):
                assert ours.value == pytest.approx(value, rel=1e-4), key
            elif value == "N/A":
                assert ours.stderr is None
            elif "perplexity" not in metric:  # bootstrapped
                assert ours.stderr == pytest.approx(value, rel=1e-6), key
    assert compared >= 4
    known = {(leaf, s["doc_id"], s["filter"]): s for leaf, each in theirs["samples"].items() for s in each}
    samples = list(built.samples("test", answers))
    assert len(samples) == built.instances("test") == 15
    for sample in samples:
        for chosen, values in sample["metrics"].items():
            other = known[sample["task"], sample["doc_id"], chosen]
            assert sample["arguments"] == json.loads(json.dumps([list(each) for each in other["arguments"]]))
            for response, (expected,) in zip(sample["resps"], other["resps"], strict=True):
                if isinstance(expected, str):
                    assert response == expected
                elif isinstance(expected, tuple):
                    assert response == [pytest.approx(expected[0], abs=1e-3), expected[1]]
                else:
                    assert response == pytest.approx(expected, rel=1e-4)
            for metric, value in values.items():
                if isinstance(value, (int, float)):
                    assert value == pytest.approx(other[metric], rel=1e-4)


def test_some_are_right_and_some_are_wrong(task, model, tokenizer):
    scores = Scorer([task("choices"), task("writing")], tokenizer=tokenizer).score(model, "test")
    assert 0.2 < scores["choices"].mean() < 1
    assert task("writing", filter="loose")._filter == ("loose",)


def questions(built: HarnessTask, split) -> list[str]:
    return [instance.doc["question"] for instance in built._instances[split]]


def test_the_search_takes_validation_documents_then_training_ones_then_a_part_of_the_same(task, caplog):
    assert task("writing").source("search") == "validation documents of our_writing (12 of 30)"
    of_51 = "of 51, 1 of them left out: the same as others)"
    assert task("writing").source("test") == f"test documents of our_writing (15 {of_51}"
    assert task("choices").source("search") == "train documents of our_choices (12 of 41)"
    assert "optimizes" not in caplog.text
    assert "1 of 41 search items of task choices are left out: the test split is dealt from them too" in caplog.text
    assert task("last_word").source("search") == f"validation documents of our_last_word (12 {of_51}"
    assert task("rolling", documents="test").source("search") == f"test documents of our_rolling (12 {of_51}"
    assert "optimizes on documents of the benchmark's test split" in caplog.text


@pytest.mark.parametrize(("name", "search", "test"), [("last_word", 25, 25), ("choices", 30, 50), ("writing", 30, 50)])
def test_no_document_is_in_both_splits_or_twice_in_one(name, search, test, task):
    built = task(name, search, test)
    searched, tested = questions(built, "search"), questions(built, "test")
    assert len({*searched, *tested}) == len(searched) + len(tested) == search + test
    again = task(name, search - 5, test)
    assert questions(again, "test") == tested
    assert {*questions(again, "search")} < {*searched}
    assert document(7)["question"] not in searched, "it stands among the test documents too"


def test_examples_of_a_search_are_none_of_its_documents(task):
    built = task("choices", 36, 15)
    searched = {*questions(built, "search")}
    contexts = [instance.requests[0].args[0] for instance in built._instances["search"]]
    for context, own in zip(contexts, questions(built, "search"), strict=True):
        *examples, asked = context.split("\n\n")
        assert len(examples) == 2
        assert asked == f"{own} is"
        assert not {example.partition(" is ")[0] for example in examples} & searched
    with pytest.raises(
        InputError, match="2 few-shot examples, but only 1 documents are left for them beside the 39 of"
    ):
        task("choices", 39, 15)


def test_the_fingerprint_is_of_documents_prompts_and_rules(task):
    usual = task("choices").fingerprint
    assert task("choices").fingerprint == usual
    for change in ({"search": 11}, {"fewshot": 1}, {"metric": "acc_norm"}, {"system_prompt": "x"}):
        assert task("choices", **change).fingerprint != usual
    assert task("writing", filter="loose").fingerprint != task("writing").fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"doc_to_target": "{{1 - (answer | int) + 1}}"},
        {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True, "weight": 2}]},
        {"process_results": "!function rules.judge"},
        {"process_results": "!function rules.judge", "helper": 1},
        {"filter_list": [{"name": "none", "filter": [{"function": "take_first"}]}]},
    ],
)
def test_a_changed_rule_is_another_task(change, folder, tmp_path, pool, tokenizer):
    fingerprints = []
    for changed in (False, True):
        described = yaml.safe_load((folder / "choices.yaml").read_text())
        helper = change.get("helper", 0) * changed
        rules = f"HELP = {helper}\n\ndef judge(doc, results):\n    return {{'acc': HELP, 'acc_norm': 0}}\n"
        (tmp_path / "rules.py").write_text(rules)
        if changed or "helper" in change:
            described |= {key: value for key, value in change.items() if key != "helper"}
        text = yaml.safe_dump(described).replace("'!function rules.judge'", "!function rules.judge")
        (tmp_path / "choices.yaml").write_text(text)
        settings = TaskSection(name="choices", task="our_choices", include=str(tmp_path), search=5, test=5)
        lm_eval._manager.cache_clear()
        fingerprints.append(HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder).fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_scores_are_in_0_1_and_larger_is_better(task, model, tokenizer):
    for built in (task("rolling"), task("last_word")):
        answers = Scorer([built], tokenizer=tokenizer).answers(model, "search")[built.name]
        scores = built.score("search", answers)
        worse = [Answer(each.logprob - 5, each.tokens, each.greedy) for each in answers]
        assert ((scores > 0) & (scores < 1)).all()
        assert (built.score("search", worse) < scores).all()


def test_a_group_is_the_mean_over_all_its_documents(task, model, tokenizer):
    built = task("group", 20, 20, metric="acc")
    answers = Scorer([built], tokenizer=tokenizer).answers(model, "test")["group"]
    metrics = built.metrics("test", answers)
    sizes = [sum(each.leaf == leaf for each in built._instances["test"]) for leaf in (0, 1)]
    parts = [metrics[f"our_{name}/acc,none"].value for name in ("choices", "other")]
    assert built.score("test", answers).mean() == pytest.approx(
        sum(p * n for p, n in zip(parts, sizes, strict=True)) / 20
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("choices", {"metric": "accuracy"}, r"no metric 'accuracy' \(did you mean 'acc'\?\); it has 'acc', 'acc_norm'"),
        ("writing", {"filter": "lose"}, r"no filter 'lose' \(did you mean 'loose'\?\); it has 'strict', 'loose'"),
        ("writing", {"generation": {"do_sample": True, "temperature": 0.7}}, "expected greedy decoding"),
        ("writing", {"generation": {"max_gen_toks": 256}}, "writes up to 256 tokens, the model reads 256"),
        ("writing", {"generation": {"max_gen_toks": "x"}}, "max_gen_toks: expected a number from 1, got 'x'"),
        ("writing", {"generation": {"max_gen_toks": -4}}, "max_gen_toks: expected a number from 1, got -4"),
        ("writing", {"generation": {"until": [5]}}, r"until: expected texts, got \[5\]"),
        ("writing", {"generation": {"untill": ["x"]}}, r"untill: no such setting \(did you mean 'until'\?\)"),
        ("choices", {"generation": {"max_gen_toks": 4}}, "generation: our_choices lets models write nothing"),
        ("choices", {"include": "/nowhere"}, "include: no such file or folder: /nowhere"),
        ("choices", {"documents": "validation"}, "our_choices has no validation documents; it has train, test"),
        ("choices", {"test": 51}, "asked for 51 test instances; it has 50 different items for them"),
        ("last_word", {"search": 30, "test": 30}, "asked for 30 search and 30 test instances, 60 in all; it has 50"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, changes, message, task):
    with pytest.raises(InputError, match=message):
        task(name, **changes)


RAISES = "def judge(doc, results):\n    raise KeyError('boom')\n"
NUMBER = "def judge(doc, results):\n    return 0.5\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task: [", "our_bad.*bad.yaml is no YAML: while parsing"),
        ("- 1", "bad.yaml names no task or group"),
        ({"process_results": RAISES}, r"our_bad, document \d+: KeyError: 'boom'"),
        ({"process_results": NUMBER}, r"our_bad, document \d+: TypeError"),
        ({"doc_to_choice": None}, "our_bad"),
        ({"doc_to_target": "{{[0, 1][label + 5]}}"}, "our_bad.* UndefinedError"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "("}]}]}, "our_bad.*error"),
        ({"metric_list": [{"metric": "acc", "aggregation": "frob", "higher_is_better": True}]}, "aggregation"),
        ({"dataset_kwargs": "abc"}, "our_bad cannot be loaded"),
        ({"validation_split": "valid"}, "data of our_bad have no split 'valid'; they have "),
        (
            {"doc_to_target": "lable"},
            r"the right answer is in no document among the choices, e.g. 'lable' of \['.*'\]; see doc_to_target",
        ),
        ({"group": "our_bad", "task": []}, "the group our_bad has no tasks"),
        (
            {"group": "our_bad", "task": ["nowhere"]},
            "our_bad cannot be loaded: there is no task nowhere, which the group names",
        ),
    ],
)
def test_a_bad_yaml_is_one_clear_error(change, message, folder, tmp_path, pool, tokenizer):
    place = tmp_path / "bad.yaml"
    if isinstance(change, str):
        place.write_text(change)
    else:
        described = yaml.safe_load((folder / "choices.yaml").read_text()) | {"task": "our_bad"} | change
        if "process_results" in change:
            (tmp_path / "rules.py").write_text(change["process_results"])
            described["process_results"] = "!function rules.judge"
        if "group" in change:
            described = change
        described = {key: value for key, value in described.items() if value is not None}
        place.write_text(yaml.safe_dump(described).replace("'!function rules.judge'", "!function rules.judge"))
    settings = TaskSection(name="bad", task="our_bad", include=str(place), search=5, test=5)
    lm_eval._manager.cache_clear()
    with pytest.raises(InputError, match=message) as caught:
        HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("task bad: ")


def changed(folder, tmp_path, pool, tokenizer, name, **changes):
    """A task of the folder with some lines changed."""
    described = yaml.safe_load((folder / f"{name}.yaml").read_text()) | {"task": "our_changed"} | changes
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(described))
    settings = TaskSection(name="c", task="our_changed", include=str(tmp_path), search=10, test=10)
    lm_eval._manager.cache_clear()
    return HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)


def test_documents_without_a_right_answer_among_the_choices_are_told(folder, tmp_path, pool, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        changed(folder, tmp_path, pool, tokenizer, "choices", doc_to_target="{{answer if label else 'nobody'}}")
    told = [r.getMessage() for r in caplog.records if "among the choices" in r.getMessage()]
    assert told
    assert all(re.match(r"task c: in [1-9] of 10 documents, e.g. \d+, the right answer is not", line) for line in told)


@pytest.mark.parametrize(
    ("right", "known"), [(True, True), (1, True), (2, False), (-1, False), ("no", True), ("maybe", False), (["x", 0], True)]
)  # fmt: skip
def test_what_counts_as_one_of_the_choices(right, known):
    assert _among(right, ["no", "yes"]) == known


def test_a_template_that_is_not_filled_in_is_told(folder, tmp_path, pool, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        changed(folder, tmp_path, pool, tokenizer, "choices", doc_to_choice=["{{answer}}", "no", "x"])
    told = {re.sub("[0-9]+", "N", r.getMessage()) for r in caplog.records if "as it stands" in r.getMessage()}
    assert told == {"task c: document N asks with {{answer}} as it stands; the harness fills in no list of templates"}


def test_a_metric_that_the_right_answer_takes_out_of_range_is_refused(folder, tmp_path, pool, tokenizer):
    (tmp_path / "rules.py").write_text("def judge(doc, results):\n    return {'words': len(results[0].split()) * 2}\n")
    described = yaml.safe_load((folder / "writing.yaml").read_text()) | {"task": "our_words"}
    described |= {"metric_list": [{"metric": "words", **MEAN}], "process_results": "!function rules.judge"}
    text = yaml.safe_dump(described).replace("'!function rules.judge'", "!function rules.judge")
    (tmp_path / "words.yaml").write_text(text)
    settings = TaskSection(name="w", task="our_words", include=str(tmp_path), search=10, test=10)
    with pytest.raises(InputError, match="task w: words of an item is 2, expected a number from 0 to 1"):
        HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)


def test_a_folder_that_is_called_like_a_yaml_is_passed_over(folder, tmp_path, pool, tokenizer):
    (tmp_path / "deep.yaml").mkdir()
    shutil.copy(folder / "choices.yaml", tmp_path / "deep.yaml" / "one.yaml")
    settings = TaskSection(name="a", task="our_choices", include=str(tmp_path), search=5, test=5)
    assert HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder).instances("search") == 5


def test_two_yamls_of_one_name_are_refused(folder, tmp_path, pool, tokenizer):
    for name in ("one.yaml", "deep/two.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "choices.yaml", tmp_path / name)
    settings = TaskSection(name="a", task="our_choices", include=str(tmp_path / "one.yaml"), search=5, test=5)
    with pytest.raises(InputError, match=r"our_choices is named by several YAMLs: .*deep/two.yaml, .*one.yaml"):
        HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)


def test_a_chat_template_that_is_not_there_is_named(folder, pool):
    settings = TaskSection(
        name="choices", task="our_choices", include=str(folder), chat_template=True, search=5, test=5
    )
    with pytest.raises(InputError, match="task choices: chat_template: the base's tokenizer has none"):
        HarnessTask(settings, pool.tokenizer(), pool.checkpoints["base"].folder)


def test_a_document_that_cannot_be_scored_is_found_wherever_it_is(folder, tmp_path, pool, tokenizer):
    described = yaml.safe_load((folder / "choices.yaml").read_text()) | {"task": "our_bad"}
    documents = [document(i) | ({"label": None} if i == 30 else {}) for i in range(40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    described |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}}, "doc_to_target": "label"}
    described["num_fewshot"] = 0
    described = {key: value for key, value in described.items() if key not in ("training_split", "fewshot_split")}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(described))
    settings = TaskSection(name="bad", task="our_bad", include=str(tmp_path), search=20, test=20)
    with pytest.raises(InputError, match="task bad: our_bad, document 30: TypeError"):
        HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)


def test_metrics_that_are_no_score_of_an_item_are_refused_before_any_search(folder, pool, tokenizer):
    described = yaml.safe_load((folder / "choices.yaml").read_text())
    for metric, message in (
        ("f1", "f1 of an item is .*expected a number from 0 to 1"),
        ("brier_score", "less is better"),
    ):
        described |= {"task": f"our_{metric}", "metric_list": [{"metric": metric}]}
        place = folder.with_name(f"one-{metric}.yaml")
        place.write_text(yaml.safe_dump(described))
        settings = TaskSection(name=metric, task=f"our_{metric}", include=str(place), search=5, test=5)
        with pytest.raises(InputError, match=message):
            HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)


def test_documents_that_are_not_there_are_named_with_the_way_to_get_them(folder, pool, tokenizer, monkeypatch):
    described = yaml.safe_load((folder / "choices.yaml").read_text())
    for name, change, message in (
        ("gone", {"dataset_kwargs": {"data_files": {"test": "no/such.jsonl"}}}, "its YAML names the files"),
        ("hub", {"dataset_path": "nobody/nothing", "dataset_kwargs": {}}, r"datasets.load_dataset\('nobody/nothing'\)"),
    ):
        place = folder / name / "task.yaml"
        place.parent.mkdir()
        place.write_text(yaml.safe_dump({**described, "task": f"our_{name}", **change}))
        settings = TaskSection(name=name, task=f"our_{name}", include=str(place), search=5, test=5)
        with pytest.raises(InputError, match=f"task {name}: our_{name} cannot be loaded: .*{message}"):
            HarnessTask(settings, tokenizer, pool.checkpoints["base"].folder)


def test_prompts_longer_than_the_model_reads_lose_their_beginning_as_in_the_harness(task, tokenizer, caplog):
    built = task("choices", system_prompt="so " * 200)
    assert "prompts are longer than the 256 tokens that the model reads" in caplog.text
    assert all(len(r.context) + len(r.continuation) == 257 for r in built.requests("test") if isinstance(r, Request))
    assert all(tokenizer.decode(r.context).endswith(" is") for r in built.requests("test"))
    writing = task("writing", system_prompt="so " * 200)
    assert {len(r.context) for r in writing.requests("test") if isinstance(r, Prompt)} == {256 - 12}


def test_the_harness_s_loggers_and_bars_are_left_as_they_were(task):
    before = logging.getLogger("lm_eval").level
    task("choices")
    assert logging.getLogger("lm_eval").level == before
