"""What is counted of weights as they pass."""

from __future__ import annotations

import weakref

import pytest
import torch

from sae_moo.deploy.stream import Stream, is_two_four
from sae_moo.errors import WeightsError
from sae_moo.materialization.texts import calibration_texts
from sae_moo.recipe import Cast, Expert, Merge, Prune, Repair


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


@pytest.mark.parametrize(("scope", "fits"), [("2:4", {True}), ("tensor", {False})])
def test_matrices_in_the_pattern_are_told_as_they_pass(tiny, scope, fits):
    stream = Stream(Prune(Expert("math"), 0.5, scope=scope), tiny, torch.float32)
    for entry in stream.entries:
        stream.tensor(entry.name)
    assert len(stream.two_four) == 14
    assert set(stream.two_four.values()) == fits


def test_weights_that_are_not_finite_are_named(tiny):
    huge = Merge("linear", (Expert("math"),), (1e30,), {"normalize": False})
    stream = Stream(huge, tiny, torch.float16)
    for _ in range(2):
        for entry in stream.entries:
            stream.tensor(entry.name)
    with pytest.raises(WeightsError, match=r"not finite in model.embed_tokens.weight, .* and 17 more; nothing was"):
        stream.sparsity()


def test_a_repaired_model_is_given_back_and_made_again_for_a_further_tensor(tiny):
    texts = calibration_texts(tiny, [list(range(3, 40))])
    stream = Stream(Cast(Repair(Prune(Expert("math"), 0.5), texts), "float32"), tiny, torch.float32)
    first = {entry.name: stream.tensor(entry.name) for entry in stream.entries}
    model, sparsity = weakref.ref(stream.model), stream.sparsity()
    stream.release()
    assert model() is None
    assert stream.sparsity() == sparsity
    assert all(torch.equal(stream.tensor(name), weight) for name, weight in first.items())
