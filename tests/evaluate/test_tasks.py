from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.evaluate.task import Answer
from sae_moo.evaluate.tasks import Item, ItemTask, encode, end_tokens, origin_of, read_items, split_items, zoo_items


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return tiny.tokenizer()


def items(count: int) -> list[Item]:
    return [Item(f"question {i} is", (f" {i}",)) for i in range(count)]


def test_splits_are_disjoint_exact_and_fixed():
    splits = split_items("t", items(50), 20, 30)
    assert (len(splits["search"]), len(splits["test"])) == (20, 30)
    assert not {i.prompt for i in splits["search"]} & {i.prompt for i in splits["test"]}
    assert split_items("t", items(50)[::-1], 20, 30) == splits, "the order of the file does not matter"
    assert split_items("t", items(50), 10, 30)["test"] == splits["test"], "nor does the size of the other split"
    for search, test in ((20, 10), (5, 45), (40, 10)):
        other = split_items("t", items(50), search, test)
        if len(other["test"]) + 20 <= 50:
            assert not set(other["test"]) & set(splits["search"]), "what was searched on once never becomes a test item"


@pytest.mark.parametrize(
    "other",
    [
        Item("What is  it?", (" a", " b")),
        Item("what is it?", (" a", " b")),
        Item("What is it?\n", (" a", " b")),
        Item("What is it?", (" a", " c")),
        Item("What is it?", (" b", " a")),
        Item("What is it?", (" A", " b")),
        Item("What is it?", (" a ", " b")),
        Item("What is it?", (" a", " b"), 1),
    ],
)
def test_an_item_is_all_that_it_holds(other, caplog):
    item = Item("What is it?", (" a", " b"))
    splits = split_items("t", [item, other, Item("Why?", (" c", " d"))], 2, 1)
    assert {*splits["search"], *splits["test"]} == {item, other, Item("Why?", (" c", " d"))}
    assert not [message for message in caplog.messages if "left out" in message]
    with pytest.raises(InputError, match="asked for 1 search and 1 test instances, 2 in all; it has 1 different items"):
        split_items("t", [item, item], 1, 1)


def test_what_is_left_out_is_told_with_its_number(caplog, tokenizer):
    twins = [*items(4), *items(2)]
    splits = split_items("t", twins, 2, 2)
    assert "2 of 6 items of task t are left out" in caplog.text
    task = ItemTask("t", "likelihood", splits, tokenizer, origin=origin_of(twins))
    assert task.source("search") == "items of its own, 2 of 6 left out: the same as others"
    assert origin_of(items(4)) == "items of its own"


@pytest.mark.parametrize("task", zoo.TASKS)
def test_the_zoos_splits_share_no_text(task):
    found, _ = zoo_items(task)
    splits = split_items(task, found, 200, 400)
    assert not {i.prompt for i in splits["search"]} & {i.prompt for i in splits["test"]}


def test_an_unknown_zoo_task_is_named():
    with pytest.raises(InputError, match=r"no task 'zoo_mat' \(did you mean 'zoo_math'\?\)"):
        zoo_items("zoo_mat")


@pytest.mark.parametrize(
    ("prompt", "answer"), [("3 and 4 is", " 7"), ("3 and 4 is ", "7"), ("", "7 and 8"), (" ", "x"), ("a\n", "b")]
)
def test_encoding_loses_no_token(tokenizer, prompt, answer):
    request = encode(tokenizer, prompt, answer)
    text = tokenizer.decode([*request.context, *request.continuation], skip_special_tokens=True)
    assert text == prompt + answer
    assert request.context
    assert request.continuation


def test_a_begin_token_comes_first_where_the_tokenizer_adds_one(tokenizer):
    class Adding:
        bos_token_id = 1
        eos_token_id = 0

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            return type("Ids", (), {"input_ids": [1, *ids] if add_special_tokens else ids})

    plain, adding = encode(tokenizer, "3 and 4 is", " 7"), encode(Adding(), "3 and 4 is", " 7")
    assert adding.context == (1, *plain.context)
    assert adding.continuation == plain.continuation


def test_an_answer_ends_with_a_special_token_or_a_new_line(tokenizer):
    ends = end_tokens(tokenizer)
    assert tokenizer.eos_token_id in ends
    assert all(tokenizer.decode([i]).startswith("\n") or i in tokenizer.all_special_ids for i in ends)


def test_three_ways_of_scoring(tokenizer):
    choice = [Item("a", (" x", " y", " z"), 1), Item("b", (" x", " y"), 0)]
    splits = {"search": choice, "test": []}
    answers = [Answer(value, 1, False) for value in (-2.0, -1.0, -3.0, -1.0, -1.0)]
    assert ItemTask("t", "multiple_choice", splits, tokenizer).score("search", answers).tolist() == [1.0, 1.0]
    one = {"search": [Item("a", (" x",))], "test": []}
    assert ItemTask("t", "exact_match", one, tokenizer).score("search", [Answer(-9.0, 3, True)]).tolist() == [1.0]
    likelihood = ItemTask("t", "likelihood", one, tokenizer).score("search", [Answer(-3.0, 3, False)])
    assert likelihood.tolist() == pytest.approx([math.exp(-1.0)])


def test_the_fingerprint_is_of_items_splits_and_rule(tokenizer):
    def fingerprint(kind="likelihood", count=5, label=0):
        found = [Item(f"q {i}", (" x", " y"), label) for i in range(count)]
        return ItemTask("t", kind, split_items("t", found, 2, 2), tokenizer).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint("multiple_choice"), fingerprint(count=6), fingerprint(label=1)}) == 4


def test_items_longer_than_the_model_are_refused(tokenizer):
    splits = {"search": [Item("word " * 50, (" x",))], "test": []}
    with pytest.raises(InputError, match=r"request 0 of the search split has \d+ tokens; the model takes 8"):
        ItemTask("t", "likelihood", splits, tokenizer, max_tokens=8)


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    lines = ['{"prompt": "a", "answer": "b"}', "", "{", "[]", '{"prompt": "a"}', '{"prompt": 1, "answer": "b"}']
    path.write_text("\n".join([*lines, '{"prompt": "a", "answer": ""}']))
    with pytest.raises(InputError) as caught:
        read_items(path, "likelihood")
    text = str(caught.value)
    for number, message in {
        3: "not JSON",
        4: "expected an object, got list",
        5: "expected prompt, answer; missing answer",
        6: "prompt: expected text, got 1",
        7: "answer: expected non-empty text",
    }.items():
        assert f"items.jsonl:{number}: {message}" in text
    path.write_text('{"prompt": "a", "choices": ["x", "y"], "label": 2}\n{"prompt": "a", "choices": ["x"], "label": 0}')
    with pytest.raises(InputError, match=r"label: expected a whole number from 0 to 1, got 2(.|\n)*two or more"):
        read_items(path, "multiple_choice")
    path.write_text('{"prompt": "a", "choices": ["x", "y", "x"], "label": 1}')
    assert [item.choices for item in read_items(path, "multiple_choice")] == [("x", "y", "x")]
    path.write_text('{"prompt": "a", "choices": ["x", "y", "x"], "label": 2}')
    with pytest.raises(InputError, match=r"items\.jsonl:1: choices: expected the right choice once, 'x' comes again"):
        read_items(path, "multiple_choice")
    with pytest.raises(InputError, match="cannot read items"):
        read_items(tmp_path / "gone.jsonl", "likelihood")


def test_lines_are_cut_at_new_lines_only_and_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b\u0085c", "answer": "d"}\r\n', encoding="utf-8")
    assert read_items(path, "likelihood") == [Item("a\u2028b\u0085c", ("d",))]
    path.write_text('{"prompt": "a", "answer": "\\ud800"}')
    with pytest.raises(InputError, match=r"items\.jsonl:1: .*surrogates not allowed"):
        read_items(path, "likelihood")


def test_real_items(data, tmp_path, tokenizer):
    rows = [json.loads(line) for line in (data / "xcopa/it/val.it.jsonl").read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "xcopa.jsonl"
    entries = [
        {"prompt": row["premise"], "choices": [" " + row["choice1"], " " + row["choice2"]], "label": row["label"]}
        for row in rows
    ]
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    splits = split_items("xcopa", read_items(path, "multiple_choice"), 40, 50)
    task = ItemTask("xcopa", "multiple_choice", splits, tokenizer)
    assert (task.instances("search"), len(task.requests("search"))) == (40, 80)
    rng = np.random.default_rng(0)
    scores = task.score("search", [Answer(-float(rng.random()), 1, False) for _ in range(80)])
    assert set(scores) <= {0.0, 1.0}
