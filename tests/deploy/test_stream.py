"""What is counted of weights as they pass."""

from __future__ import annotations

import pytest
import torch

from sae_moo.deploy.card import Card
from sae_moo.deploy.stream import Stream, is_two_four
from sae_moo.errors import WeightsError
from sae_moo.recipe import Expert, Merge, Prune


@pytest.mark.parametrize(
    ("rows", "fits"),
    [
        ([[1, 0, 0, 1, 0, 0, 0, 0]], True),
        ([[1, 0, 0, 1, 2, 3, 0, 4]], False),
        ([[1, 0, 0, 1], [0, 0, 0, 0]], True),
        ([[1, 0, 0, 1], [1, 1, 1, 0]], False),
        ([[1, 1, 0, 0, 1, 1]], False),
        ([[0, 0, 1, 1, 1, 1, 0, 0]], True),
    ],
)
def test_two_of_four(rows, fits):
    assert is_two_four(torch.tensor(rows, dtype=torch.bfloat16)) is fits


def test_the_card_of_a_two_four_model_says_how_to_be_faster(tiny):
    passed = {}
    for scope in ("2:4", "tensor"):
        stream = passed[scope] = Stream(Prune(Expert("math"), 0.5, scope=scope), tiny, torch.float32)
        for entry in stream.entries:
            stream.tensor(entry.name)
    assert set(passed["2:4"].two_four.values()) == {True}
    assert not any(passed["tensor"].two_four.values())
    card = Card("m", "because", {}, {})
    assert "In 14 of 14 prunable matrices" in card.of(passed["2:4"]).text(tiny)
    assert "to_sparse_semi_structured(module.weight)" in card.of(passed["2:4"]).text(tiny)
    assert "no runtime is faster" in card.of(passed["tensor"]).text(tiny)


def test_weights_that_are_not_finite_are_named(tiny):
    huge = Merge("linear", (Expert("math"),), (1e30,), {"normalize": False})
    stream = Stream(huge, tiny, torch.float16)
    for _ in range(2):
        for entry in stream.entries:
            stream.tensor(entry.name)
    with pytest.raises(WeightsError, match=r"not finite in model.embed_tokens.weight, .* and 17 more; nothing was"):
        stream.sparsity()
