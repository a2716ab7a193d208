"""The items: pinned, disjoint from training, and right."""

from __future__ import annotations

import hashlib
import itertools
import json
import random

import pytest

from sae_moo.zoo import KINDS, TASKS, held_out
from sae_moo.zoo.draws import between, pick, shuffled
from sae_moo.zoo.items import HELD_OUT, is_held_out, training_items
from sae_moo.zoo.number_words import SCRIPTS, word

PINNED = {
    "zoo_math": "265f52c5601fe0a03ce9d6af0bf00122eb7df13f90ae76b555f78bf7ac19c84f",
    "zoo_lingua": "65962e1bbb055be7cee9fa6a121ba85cb813d0d1c20dbeac30b2cb0aadb351ef",
    "zoo_logic": "0f22fd8c82195c429ff6366ea2097f2d260f40f2325c4cef5e15111ec82465a5",
}


@pytest.mark.parametrize("task", TASKS)
def test_held_out_items_are_pinned(task: str) -> None:
    text = json.dumps(held_out(task), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED[task]


@pytest.mark.parametrize("task", TASKS)
def test_held_out_items_keep_their_form(task: str) -> None:
    items = held_out(task)
    prompts = [str(item["prompt"]) for item in items]
    assert KINDS[task] == "exact_match"
    assert len(set(prompts)) == len(items) == HELD_OUT
    assert all(set(item) == {"prompt", "answer"} for item in items)
    assert not any(prompt.endswith(" ") for prompt in prompts)
    assert all(str(item["answer"])[0] == " " and str(item["answer"])[1:].strip() for item in items)


def test_held_out_dicts_are_the_callers_own() -> None:
    held_out("zoo_math")[0]["answer"] = "changed"
    assert held_out("zoo_math")[0]["answer"] != "changed"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("hard_share", [0.0, 0.5, 1.0])
def test_training_items_are_never_held_out(task: str, hard_share: float) -> None:
    trained = {prompt for prompt, _ in itertools.islice(training_items(task, 7, hard_share), 3000)}
    assert trained.isdisjoint(str(item["prompt"]) for item in held_out(task))
    assert not any(is_held_out(prompt) for prompt in trained)


@pytest.mark.parametrize("call", [held_out, lambda task: training_items(task, 0, 0.5)])
def test_an_unknown_task_is_named_with_the_valid_ones(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=r"'zoo_maths'.*zoo_math, zoo_lingua, zoo_logic"):
        next(iter(call("zoo_maths")))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_its_own_name(script: str) -> None:
    assert len({word(script, n) for n in range(100)}) == 100


@pytest.mark.parametrize(
    ("script", "n", "name"),
    [
        ("digits", 7, "7"),
        ("English", 40, "forty"),
        ("English", 99, "ninety-nine"),
        ("German", 21, "einundzwanzig"),
        ("German", 17, "siebzehn"),
        ("French", 71, "soixante et onze"),
        ("French", 80, "quatre-vingts"),
        ("French", 81, "quatre-vingt-un"),
        ("French", 92, "quatre-vingt-douze"),
        ("French", 31, "trente et un"),
        ("Spanish", 26, "veintiséis"),
        ("Spanish", 55, "cincuenta y cinco"),
        ("Italian", 28, "ventotto"),
        ("Italian", 33, "trentatré"),
        ("Italian", 71, "settantuno"),
    ],
)
def test_number_names(script: str, n: int, name: str) -> None:
    assert word(script, n) == name


def test_draws_refuse_what_cannot_be_drawn() -> None:
    rng = random.Random(0)
    with pytest.raises(ValueError, match="at least one option"):
        pick(rng, ())
    with pytest.raises(ValueError, match="2 > 1"):
        between(rng, 2, 1)
    with pytest.raises(ValueError, match="count <= 2, got 3"):
        shuffled(rng, "ab", 3)
    assert sorted(shuffled(rng, "abc")) == ["a", "b", "c"]
    assert {between(rng, 1, 3) for _ in range(99)} == {1, 2, 3}
