from __future__ import annotations

import numpy as np
import pytest

from sae_moo.evaluate.trie import LEAST_SHARED, rows

PROMPT = tuple(range(100, 120))


def reads(row, place: int) -> list[int]:
    """The tokens that one token attends to, in order."""
    return [row.tokens[j] for j in range(place + 1) if place < row.end[j]]


def check(sequences, most: int) -> list:
    laid = rows(sequences, most)
    assert sorted(index for row in laid for index in row.paths) == list(range(len(sequences)))
    for row in laid:
        assert len(row.tokens) == len(row.depth) == len(row.end)
        assert len(row.tokens) <= most or len(row.paths) == 1
        for index, path in row.paths.items():
            assert tuple(row.tokens[place] for place in path) == sequences[index]
            assert [row.depth[place] for place in path] == list(range(len(path)))
            for depth, place in enumerate(path.tolist()):
                assert tuple(reads(row, place)) == sequences[index][: depth + 1], "its own ancestors and nothing else"
    return laid


def test_choices_of_one_prompt_share_it():
    choices = [(*PROMPT, 1), (*PROMPT, 2, 3), (*PROMPT, 2, 4, 5), PROMPT]
    (row,) = check(choices, 1000)
    assert len(row.tokens) == len(PROMPT) + 5


def test_questions_behind_the_same_examples_share_them_and_each_its_own_prompt():
    questions = [(*PROMPT, *([7 + i] * 12), choice) for i in range(3) for choice in (1, 2)]
    (row,) = check(questions, 1000)
    assert len(row.tokens) == 20 + 3 * (12 + 2)
    assert len(check(questions, 40)) == 3, "a row of at most forty tokens has room for one question"


def test_what_shares_little_has_a_row_of_its_own():
    start = PROMPT[: LEAST_SHARED - 1]
    assert len(check([(*start, 1), (*start, 2)], 1000)) == 2
    assert len(check([(*PROMPT[:10], *([1] * 30)), (*PROMPT[:10], *([2] * 30))], 1000)) == 2
    assert len(check([PROMPT, (5, 6, 7)], 1000)) == 2


@pytest.mark.parametrize("most", [0, 1, 30, 100, 10_000])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_any_sequences(count, most):
    rng = np.random.default_rng(count)
    stems = [tuple(rng.integers(0, 5, rng.integers(1, 30)).tolist()) for _ in range(4)]
    drawn = [stems[rng.integers(4)] + tuple(rng.integers(0, 3, rng.integers(0, 9)).tolist()) for _ in range(count)]
    laid = check(list(dict.fromkeys(drawn)), most)
    assert most > 1 or all(len(row.paths) == 1 for row in laid)
