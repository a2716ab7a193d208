"""Probes: texts of the search split without answers, from all over it, as many tokens as may be read."""

from __future__ import annotations

import pytest

from sae_moo.errors import InputError
from sae_moo.evaluate import probes as module
from sae_moo.evaluate.asking import ProbesSection
from sae_moo.evaluate.probes import bounded, facts_of, probes_of, spread
from sae_moo.evaluate.task import Request
from sae_moo.evaluate.tasks import Item, ItemTask, split_items


def task(pool, kind="likelihood", prompt="question {} is", answers=(" {}",), count=40) -> ItemTask:
    items = [Item(prompt.format(i), tuple(each.format(i) for each in answers)) for i in range(count + 5)]
    return ItemTask("a", kind, split_items("a", items, count, 5), pool.tokenizer())


class Asked:
    """A task whose requests are given."""

    name = "asked"

    def __init__(self, instances, *requests):
        self._instances, self._requests = instances, [Request(*each) for each in requests]

    def instances(self, split):
        return self._instances

    def requests(self, split):
        assert split == "search"
        return self._requests


def test_probes_are_prompts_of_the_search_split_without_answers(tiny):
    one = task(tiny)
    (probes,) = probes_of([one], tiny, ProbesSection(items=8, tokens=4096))
    asked = [request.context for request in one.requests("search")]
    assert probes.sequences == tuple(asked[5 * i] for i in range(8)), "from all over the split"
    assert probes.tokens == sum(map(len, probes.sequences))
    (other,) = probes_of([one], tiny, ProbesSection(items=9))
    assert (probes.digest == other.digest, len(other.sequences)) == (False, 9)


def test_a_prompt_with_several_answers_is_read_once_and_none_of_them(tiny):
    one = task(tiny, "multiple_choice", answers=(" {}", " no"), count=10)
    (probes,) = probes_of([one], tiny, ProbesSection())
    assert probes.sequences == tuple(dict.fromkeys(each.context for each in one.requests("search")))
    assert len(probes.sequences) == 10


def test_answers_to_choose_from_are_read_where_nothing_else_is_there_and_right_ones_never(tiny):
    choices = Asked(1, ((3,), (4, 5)), ((3,), (6, 7)))
    assert probes_of([choices], tiny, ProbesSection())[0].sequences == ((3, 4, 5), (3, 6, 7))
    answers = Asked(2, ((3,), (4, 5)), ((2,), (6, 7)))
    with pytest.raises(InputError, match=r"predict.probes: prompts of asked: expected texts of at least 2 tokens"):
        probes_of([answers], tiny, ProbesSection())


def test_texts_of_a_file_are_those_of_every_task(tiny, tmp_path):
    (tmp_path / "texts.txt").write_text("one text of some words\n\nand another\n\nand a third")
    probes = probes_of([task(tiny), Asked(1)], tiny, ProbesSection(data="texts.txt", items=2), tmp_path)
    assert [each.task for each in probes] == ["a", "asked"]
    wanted = tuple(tuple(tiny.tokenizer()(text).input_ids) for text in ("one text of some words", "and another"))
    assert probes[0].sequences == probes[1].sequences == wanted
    with pytest.raises(InputError, match=r"cannot read texts of predict\.probes\.data"):
        probes_of([task(tiny)], tiny, ProbesSection(data="none.txt"), tmp_path)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (100, ["abcdefgh", "ij", "klmno"]),
        (15, ["abcdefgh", "ij", "klmno"]),
        (14, ["bcdefgh", "ij", "klmno"]),
        (9, ["fgh", "ij", "mno"]),
        (6, ["gh", "ij", "no"]),
        (4, ["gh", "ij"]),
        (3, ["fgh"]),
        (2, ["gh"]),
    ],
)
def test_the_longest_texts_lose_their_beginnings(tokens, kept):
    assert bounded(["abcdefgh", "ij", "klmno"], tokens) == kept


def test_the_larger_the_vocabulary_the_shorter_are_probes(tiny, monkeypatch):
    monkeypatch.setattr(module, "PASS_BYTES", 4 * 512 * 3)
    monkeypatch.setattr(module, "SHORTEST", 2)
    texts = Asked(1, ((1, 2, 3, 4, 5), (6,)), ((7, 8), (6,)))
    assert probes_of([texts], tiny, ProbesSection())[0].sequences == ((3, 4, 5), (7, 8))
    monkeypatch.setattr(module, "SHORTEST", 4)
    assert probes_of([texts], tiny, ProbesSection())[0].sequences == ((2, 3, 4, 5), (7, 8))


def test_values_are_taken_from_all_over():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]


def test_probes_are_told_from_others_by_what_is_read_wherever_it_lies(tmp_path):
    for name, text in {"a": "one and two", "same": "one and two", "b": "one and three"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    own, a, same, b = (facts_of(ProbesSection(data=name), tmp_path) for name in (None, "a.txt", "same.txt", "b.txt"))
    assert a == same
    assert len({each["data"] for each in (own, a, b)}) == 3
    assert a != facts_of(ProbesSection(data="a.txt", items=5), tmp_path)
